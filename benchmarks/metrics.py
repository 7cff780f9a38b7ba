"""Pixel metrics: all of them, in a tenth of the time of one.

    python benchmarks/metrics.py

compares `skad.metrics` with `sklearn.metrics.roc_auc_score` and anomalib's AUPRO on 60
maps of 1024 x 1024 pixels, and computes the same from maps that are made one by one.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import limit_threads, optional, parser, peak_memory, publish, race, row
from sklearn.metrics import roc_auc_score

from skad._maps import render
from skad.metrics import pixel_metrics, pro_score


class Maps(Sequence):
    """Anomaly maps as a model draws them, made when they are asked for."""

    def __init__(self, n, side):
        self.n, self.side = n, side

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if not 0 <= index < self.n:
            raise IndexError(index)
        rng = np.random.default_rng(index)
        grid = rng.gamma(4, size=(1, 28, 28)).astype(np.float32)
        if index % 2:
            grid[0, 8:14, 9 + index % 8 : 14 + index % 8] += 3
        return render(grid, (self.side, self.side))[0]

    def masks(self):
        """Two defects in every second image."""
        masks, cell = [None] * self.n, self.side / 28
        for i in range(1, self.n, 2):
            masks[i] = np.zeros((self.side, self.side), bool)
            for top, left, height in ((8, 9 + i % 8, 6), (20, 3, 2)):
                box = np.array([top, top + height, left, left + 5]) * cell
                a, b, c, d = box.astype(int)
                masks[i][a:b, c:d] = True
        return masks


def streaming_memory(n, side):
    """Memory that metrics of so many images take at their largest, in bytes."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from metrics import Maps, pixel_metrics
maps = Maps({n}, {side})
masks = maps.masks()
if run: pixel_metrics(masks, maps)
"""
    return peak_memory("run = True" + code) - peak_memory("run = False" + code)


def main():
    options = parser(__doc__).parse_args()
    n, side = (4, 128) if options.small else (60, 1024)
    maps = Maps(n, side)
    masks, arrays = maps.masks(), np.stack(list(maps))
    truth = np.stack([np.zeros((side, side), bool) if m is None else m for m in masks])
    limits = [0.3, 0.05]
    racers = {
        "all": lambda: pixel_metrics(masks, arrays, max_fpr=limits),
        "all, streaming": lambda: pixel_metrics(masks, maps, max_fpr=limits),
        "PRO": lambda: pro_score(masks, arrays),
        "drawing": lambda: [maps[i] for i in range(n)],
        "sklearn roc_auc_score": lambda: roc_auc_score(truth.ravel(), arrays.ravel()),
    }
    if optional("anomalib") is not None:
        import torch
        from anomalib.metrics.aupro import _AUPRO

        def aupro():
            metric = _AUPRO(fpr_limit=0.3)
            metric.update(torch.from_numpy(arrays), torch.from_numpy(truth).long())
            return float(metric.compute())

        racers["anomalib AUPRO"] = aupro
    limit_threads(options.threads)
    seconds, results = race(racers, options.rounds, patience=5)
    for name, value in results["all"].items():
        print(name, value, np.asarray(results["all, streaming"][name]) == value)
    print("roc_auc_score", results["sklearn roc_auc_score"])
    print("AUPRO of anomalib", results.get("anomalib AUPRO"))
    case = f"{n} x {side} x {side}"
    roc = "sklearn roc_auc_score"
    rows = [
        row(f"{case}: all metrics, two limits", seconds["all"], roc, seconds[roc], 10)
    ]
    if "anomalib AUPRO" in seconds:
        peer = "anomalib AUPRO"
        rows.append(row(f"{case}: PRO", seconds["PRO"], peer, seconds[peer], 10))
    rows.append(
        row(
            f"{case}: all, each map rendered when looked at",
            seconds["all, streaming"],
            "rendering each once",
            seconds["drawing"],
        )
    )
    n_images = (n, 2 * n)
    few, many = (streaming_memory(some, side) / 1e6 for some in n_images)
    case = f"memory of the metrics of {n_images[0]} streamed maps"
    rows.append(
        [case, f"{few:.0f} MB", f"{n_images[1]} maps", f"{many:.0f} MB", "", ""]
    )
    publish(options, "metrics", rows)


if __name__ == "__main__":
    main()

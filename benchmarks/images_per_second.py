"""Images per second of whole pipelines, on a GPU where there is one.

    python benchmarks/images_per_second.py

follows the protocol that EfficientAD's paper describes: images of 256 px lie ready in
the memory of the host, the answer comes back to it, and 1,000 calls are timed after
1,000 that warm up, in float16. On a CPU there are 20 of each, in float32. "bare
network" is the median of the pipeline's network on a batch that lies ready. Weights
are random, which costs the same.
"""

import functools
import statistics

import numpy as np
from harness import limit_threads, network_of, parser, publish, timed
from pipeline import fitted

from skad import PaDiMDetector, PatchFeatures, Pipeline, SubspaceDetector
from skad.datasets import load_mvtec

HEADER = ("case", "batch", "per call", "worst of 100", "images/s", "bare network")


def models(options, train, names):
    """Pipelines that learned from a few images."""
    size, n_rows = (64, 100) if options.small else (256, 10_000)
    for name in names:
        layers = {"layers": ("layer2", "layer3"), "weights": False, "image_size": size}
        yield f"PatchCore, {name}", fitted(options, name, size, n_rows, train)
        for detector in (PaDiMDetector(calibration="train"), SubspaceDetector()):
            features = PatchFeatures(
                name, embedding="replicate", n_components=100, **layers
            )
            title = f"{type(detector).__name__[:-8]}, {name}"
            yield title, Pipeline([features, detector]).fit(train[:40])


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="auto")
    arguments.add_argument(
        "--backbones", nargs="+", default=["resnet18", "wide_resnet50_2"]
    )
    options = arguments.parse_args()
    import torch

    on_gpu = options.device.startswith("cuda") or (
        options.device == "auto" and torch.cuda.is_available()
    )
    n_calls = 1 if options.small else (1000 if on_gpu else 20)
    where = torch.cuda.get_device_name() if on_gpu else "CPU"
    kind = "float16" if on_gpu else "float32"
    train = load_mvtec(options.data, "mvtec_bottle_256").train
    names = options.backbones[:1] if options.small else options.backbones
    rng = np.random.default_rng(0)
    rows = []
    for title, model in models(options, train, names):
        model[0].set_params(device=options.device, precision=kind, batch_size=32)
        for batch in (1, 32):
            images = rng.integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8)
            limit_threads(options.threads)
            call = functools.partial(model.decision_function, images)
            seconds = timed(call, n_calls)
            ready = rng.random((batch, 3, *model[0]._input_size()), np.float32)
            bare = statistics.median(timed(network_of(model[0], ready), n_calls))
            middle = statistics.median(seconds)
            slow = float(np.quantile(seconds, 0.99))
            case = f"{title}, {kind}, {where}"
            times = (f"{1e3 * middle:.1f} ms", f"{1e3 * slow:.1f} ms")
            rows.append([case, batch, *times, f"{batch / middle:.0f}"])
            rows[-1].append(f"{1e3 * bare:.1f} ms")
            print(*rows[-1], sep=" | ", flush=True)
    publish(options, "images per second", rows, HEADER)


if __name__ == "__main__":
    main()

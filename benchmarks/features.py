"""Patch features from JPEG files against the bare network.

    python benchmarks/features.py

`PatchFeatures.transform` reads, decodes, resizes, runs the network and embeds. The bare
network gets one ready batch, over and over: whole, and only up to the last level that
the features need. Weights are random, which costs the same.
"""

import time

import numpy as np
from harness import (
    limit_threads,
    parser,
    peak_memory,
    publish,
    race,
    real_features,
    row,
    timing,
)

from skad import PatchCoreDetector, PatchFeatures
from skad.datasets import load_mvtec
from skad.metrics import image_auroc

CASES = (
    ("resnet18", ("layer2", "layer3"), 224),
    ("wide_resnet50_2", ("layer2", "layer3"), 224),
    ("mobilenetv2_100", "auto", 224),
    ("vit_small_patch14_dinov2", "auto", 224),
    ("vit_small_patch14_dinov2", "auto", 518),
)
BATCH = 16


class _Reached(Exception):
    pass


def bare_network(name, last, size):
    """Runs of a batch through all of a network, and up to one of its modules."""
    import timm
    import torch

    kwargs = {"img_size": size} if name.startswith("vit") else {}
    module = timm.create_model(name, pretrained=False, **kwargs).eval()
    module = module.to(memory_format=torch.channels_last)
    batch = torch.rand(BATCH, 3, size, size).to(memory_format=torch.channels_last)

    def whole():
        with torch.inference_mode():
            module(batch)

    def stop(*_):
        raise _Reached

    def part():
        handle = module.get_submodule(last).register_forward_hook(stop)
        try:
            whole()
        except _Reached:
            handle.remove()

    return whole, part


def repeated(run, n):
    """A callable that runs another so often."""
    return lambda: [run() for _ in range(n)]


def throughput(options):
    files = sorted((options.data / "mvtec_bottle_256" / "train" / "good").glob("*"))
    files = files[: BATCH * (1 if options.small else 4)]
    n_batches = len(files) // BATCH
    rows, first = [], []
    small = [(*CASES[0][:2], 64)]
    for name, layers, size in small if options.small else CASES:
        features = PatchFeatures(
            name, layers=layers, weights=False, image_size=size
        ).fit(files[:1])
        whole, part = bare_network(name, features.layers_[-1], size)

        limit_threads(options.threads)
        seconds, _ = race(
            {
                "skad": lambda features=features: features.transform(files),
                "bare, up to the last level": repeated(part, n_batches),
                "bare, whole": repeated(whole, n_batches),
            },
            options.rounds,
            patience=60,
        )
        ours = seconds.pop("skad") / len(files)
        for peer, total in seconds.items():
            goal = 0.9 if peer == "bare, whole" else None
            rows.append(row(f"{name}, {size} px", ours, peer, total / len(files), goal))
        own = features._images_at_once()
        start = time.perf_counter()
        next(iter(features._normal_batches(files)))
        late = time.perf_counter() - start
        first.append([f"{name}, {size} px", timing(late), timing(ours * own)])
    return rows, first


def memory(options):
    """Memory of a transform beside its result, for many and for few images."""
    code = f"""
from pathlib import Path
from skad import PatchFeatures
files = sorted(Path({str(options.data)!r}, "mvtec_bottle_256/train/good").glob("*"))
features = PatchFeatures("resnet18", weights=False).fit(files[:1])
result = features.transform(files[:n_images])
"""
    numbers = (2,) if options.small else (16, 64, 192)
    used = {n: peak_memory(code.replace("n_images", str(n))) for n in numbers}
    one_image = 28 * 28 * 1024 * 4
    return [
        [f"{n} images", f"{used[n] / 1e6:.0f} MB", f"{n * one_image / 1e6:.0f} MB"]
        for n in used
    ]


def precision(options):
    """Time and scores of bfloat16 beside float32, on real features."""
    data = load_mvtec(options.data, "mvtec_bottle_256")
    n, n_test, size = len(data.train), len(data.test), 224
    if options.small:
        n, n_test, size = 4, 4, 64
    some = np.linspace(0, len(data.test) - 1, n_test).astype(int)
    test_files, y_test = [data.test[i] for i in some], data.y_test[some]
    scores, seconds = {}, {}
    for kind in ("float32", "bfloat16"):
        given = {"embedding": "concat", "image_size": size, "precision": kind}
        start = time.perf_counter()
        train = real_features(options, data.train[:n], **given)
        seconds[kind] = (time.perf_counter() - start) / n
        test = real_features(options, test_files, **given)
        detector = PatchCoreDetector().fit(train)
        scores[kind] = detector.score_samples(test)
    change = np.abs(scores["bfloat16"] / scores["float32"] - 1)
    return [
        [
            kind,
            timing(seconds[kind]),
            f"{image_auroc(y_test, scores[kind]):.4f}",
            "" if kind == "float32" else f"{np.median(change):.2%}",
            "" if kind == "float32" else f"{change.max():.2%}",
        ]
        for kind in scores
    ]


def main():
    options = parser(__doc__).parse_args()
    rows, first = throughput(options)
    publish(options, "features", rows)
    header = ("case", "first batch ready after", "a batch takes")
    publish(options, "first batch", first, header)
    header = ("resnet18", "peak of the process", "the result")
    publish(options, "memory", memory(options), header)
    header = ("precision", "per image", "image AUROC", "score change", "at most")
    publish(options, "precision", precision(options), header)


if __name__ == "__main__":
    main()

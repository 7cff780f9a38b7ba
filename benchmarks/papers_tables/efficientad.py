"""EfficientAD: its main table, and its protocol for latency."""

from papers_tables._table import Row, Table

BATZNER = "Batzner et al., WACV 2024"
GPU = "RTX A6000, float16"
LATENCY = {  # ms of an image alone, and images a second of sixteen
    "EfficientAD-S": ("efficientad-s", 2.2, 614),
    "EfficientAD-M": ("efficientad-m", 4.5, 269),
    "SimpleNet": ("simplenet", 12, 194),
}


def _latency(name, batch):
    preset, milliseconds, per_second = LATENCY[name]
    published = {1: {"latency_ms": milliseconds}, 16: {"images_per_s": per_second}}
    return Row(
        f"{name}, batch of {batch}",
        preset,
        {GPU: published[batch]} if batch in published else {},
        BATZNER,
        batch=batch,
    )


TABLES = {
    "efficientad": Table(
        [
            Row(
                "EfficientAD-S",
                "efficientad-s",
                {"MVTec AD": {"image_auroc": 98.8}},
                BATZNER,
            ),
            Row(
                "EfficientAD-M",
                "efficientad-m",
                {
                    "MVTec AD": {"image_auroc": 99.1, "pro": 93.5},
                    "VisA": {"image_auroc": 98.1},
                },
                BATZNER,
            ),
        ],
        "The paper selects nothing on the test set.",
    ),
    "efficientad-latency": Table(
        [_latency(name, batch) for batch in (1, 16, 32) for name in LATENCY],
        "From 256 x 256 pixels in the memory of the host to their map in it, without a "
        "crop, by networks with random weights. On a GPU 1,000 calls are timed after "
        "1,000 that warm up, in float16 where the detector has that; on a CPU 20, or 3 "
        "of several images, in float32. Times of a CPU do not compare with the "
        "published ones.",
        seeds=1,
        protocol="latency",
    ),
}

"""The tables that `papers.py` repeats, and what was published for MVTec AD.

Numbers are percent, means over the 15 categories, from the tables of the papers.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A line of a table: a preset, and what was published for it on MVTec AD."""

    name: str
    preset: str
    published: dict
    source: str
    shots: int | None = None  # training images; None takes all


def _few(shots, image_auroc, **more):
    source = "Damm et al., WACV 2025"
    published = {"image_auroc": image_auroc, **more}
    name = f"AnomalyDINO-S, {shots} image{'s' * (shots > 1)}"
    return Row(name, "anomalydino-448", published, source, shots)


ROTH = "Roth et al., CVPR 2022"
TABLES = {
    "patchcore": [
        Row(f"PatchCore, {k} %", f"patchcore-{k}", published, ROTH)
        for k, published in (
            (25, {"image_auroc": 99.1, "pixel_auroc": 98.1, "pro": 93.4}),
            (10, {"image_auroc": 99.0, "pixel_auroc": 98.1, "pro": 93.5}),
            (1, {"image_auroc": 99.0, "pixel_auroc": 98.0, "pro": 93.1}),
        )
    ],
    "padim": [
        Row(
            "PaDiM, WRN50, d = 550",
            "padim-wrn50",
            {"image_auroc": 95.3, "pixel_auroc": 97.5, "pro": 92.1},
            "Defard et al., ICPR 2021",
        ),
        Row(
            "PaDiM, R18, d = 100",
            "padim-r18",
            {"pixel_auroc": 96.7, "pro": 90.1},
            "Defard et al., ICPR 2021",
        ),
    ],
    "spade": [
        Row(
            "SPADE",
            "spade",
            {"image_auroc": 85.5, "pixel_auroc": 96.0, "pro": 91.7},
            f"as {ROTH}, quotes it",
        )
    ],
    "simplenet": [
        Row(
            "SimpleNet",
            "simplenet",
            {"image_auroc": 99.6, "pixel_auroc": 98.1},
            "Liu et al., CVPR 2023, at the epoch that is best on the test set; without "
            "that choice image AUROC 98.2 (Batzner et al., WACV 2024)",
        )
    ],
    "efficientad": [
        Row(
            "EfficientAD-S",
            "efficientad-s",
            {"image_auroc": 98.8},
            "Batzner et al., WACV 2024",
        ),
        Row(
            "EfficientAD-M",
            "efficientad-m",
            {"image_auroc": 99.1, "pro": 93.5},
            "Batzner et al., WACV 2024",
        ),
    ],
    "draem": [
        Row(
            "DRAEM",
            "draem",
            {"image_auroc": 98.0, "pixel_auroc": 97.3, "pixel_ap": 68.4},
            "Zavrtanik et al., ICCV 2021",
        )
    ],
    "cutpaste": [
        Row(
            "CutPaste, 3-way",
            "cutpaste",
            {"image_auroc": 95.2},
            "Li et al., CVPR 2021",
        )
    ],
    "prn": [
        Row(
            "PRN, 10 anomalies",
            "prn",
            {"image_auroc": 99.4, "pixel_auroc": 99.0, "pro": 96.1, "pixel_ap": 78.6},
            "Zhang et al., CVPR 2023",
        )
    ],
    "anomalydino": [
        _few(1, 96.5, pro=91.7),
        _few(2, 96.7),
        _few(4, 97.6),
        _few(16, 98.3),
    ],
}

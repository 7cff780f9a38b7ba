"""Numbers of images that the authors of the data sets published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from skad._user_warning import warn_user


class Published(NamedTuple):
    """Where numbers were published, and the numbers by category and part."""

    source: str
    counts: dict[str, dict[str, int]]


def _table(
    parts: Sequence[str], rows: dict[str, tuple[int, ...]]
) -> dict[str, dict[str, int]]:
    return {
        category: dict(zip(parts, row, strict=True)) for category, row in rows.items()
    }


CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_ONE_CLASS = ("normal training", "normal test", "anomalous test")

PUBLISHED = {
    "MVTec AD": Published(
        "Bergmann et al., The MVTec Anomaly Detection Dataset, IJCV 2021",
        _table(
            _ONE_CLASS,
            {
                "bottle": (209, 20, 63),
                "cable": (224, 58, 92),
                "capsule": (219, 23, 109),
                "carpet": (280, 28, 89),
                "grid": (264, 21, 57),
                "hazelnut": (391, 40, 70),
                "leather": (245, 32, 92),
                "metal_nut": (220, 22, 93),
                "pill": (267, 26, 141),
                "screw": (320, 41, 119),
                "tile": (230, 33, 84),
                "toothbrush": (60, 12, 30),
                "transistor": (213, 60, 40),
                "wood": (247, 19, 60),
                "zipper": (240, 32, 119),
            },
        ),
    ),
    "MVTec LOCO": Published(
        "Bergmann et al., Beyond Dents and Scratches, IJCV 2022",
        _table(
            ("normal training", "validation", "normal test", "anomalous test"),
            {
                "breakfast_box": (351, 62, 102, 173),
                "juice_bottle": (335, 54, 94, 236),
                "pushpins": (372, 69, 138, 172),
                "screw_bag": (360, 60, 122, 219),
                "splicing_connectors": (354, 59, 119, 193),
            },
        ),
    ),
    "VisA": Published(
        "Zou et al., SPot-the-Difference Self-Supervised Pre-training, ECCV 2022, "
        "table 1cls.csv",
        _table(
            _ONE_CLASS,
            {
                "candle": (900, 100, 100),
                "capsules": (542, 60, 100),
                "cashew": (450, 50, 100),
                "chewinggum": (453, 50, 100),
                "fryum": (450, 50, 100),
                "macaroni1": (900, 100, 100),
                "macaroni2": (900, 100, 100),
                "pcb1": (904, 100, 100),
                "pcb2": (901, 100, 100),
                "pcb3": (905, 101, 100),
                "pcb4": (904, 101, 100),
                "pipe_fryum": (450, 50, 100),
            },
        ),
    ),
    "BTAD": Published(
        "Mishra et al., VT-ADL, ISIE 2021",
        _table(
            _ONE_CLASS,
            {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)},
        ),
    ),
    "MPDD": Published(
        "Jezek et al., Deep learning-based defect detection of metal parts, ICUMT 2021",
        _table(
            _ONE_CLASS,
            {
                "bracket_black": (289, 32, 47),
                "bracket_brown": (185, 26, 51),
                "bracket_white": (110, 30, 30),
                "connector": (128, 30, 14),
                "metal_plate": (54, 26, 71),
                "tubes": (122, 32, 69),
            },
        ),
    ),
    "KolektorSDD": Published(
        "Tabernik et al., Segmentation-based deep-learning approach for "
        "surface-defect detection, Journal of Intelligent Manufacturing 2020",
        {"": {"normal": 347, "anomalous": 52}},
    ),
    "KolektorSDD2": Published(
        "Bozic et al., Mixed supervision for surface-defect detection, Computers in "
        "Industry 2021",
        _table(
            (
                "normal training",
                "anomalous training",
                "normal test",
                "anomalous test",
            ),
            {"": (2085, 246, 894, 110)},
        ),
    ),
    "DAGM": Published(
        "Wieler and Hahn, Weakly Supervised Learning for Industrial Optical "
        "Inspection, DAGM 2007",
        _table(
            ("training", "test", "normal", "anomalous"),
            {
                **{f"Class{k}": (575, 575, 1000, 150) for k in range(1, 7)},
                **{f"Class{k}": (1150, 1150, 2000, 300) for k in range(7, 11)},
            },
        ),
    ),
    "ShanghaiTech Campus": Published(
        "Liu et al., Future Frame Prediction for Anomaly Detection, CVPR 2018",
        {"": {"training": 274515, "test": 40791}},
    ),
    "CIFAR-10": Published(
        "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
        _table(_ONE_CLASS, dict.fromkeys(CIFAR10_CLASSES, (5000, 1000, 9000))),
    ),
}


def warn_of_counts(layout: str, category: str, counts: dict[str, int]) -> None:
    """Warn where a data set has other numbers of images than were published."""
    published = PUBLISHED.get(layout)
    if published is None or category not in published.counts:
        return
    expected = published.counts[category]
    wrong = [
        f"{counts[part]} {part} images, published are {n}"
        for part, n in expected.items()
        if part in counts and counts[part] != n
    ]
    if wrong:
        name = f"the category {category!r} of {layout}" if category else layout
        warn_user(
            f"{name[0].upper()}{name[1:]} has {'; '.join(wrong)} ({published.source}). "
            "The copy may be incomplete; results on it do not compare with published "
            "ones."
        )

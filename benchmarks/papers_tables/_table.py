"""What a table is: rows of presets, the data set it is for, and what was published."""

from typing import Any, NamedTuple

CATEGORIES = {"MVTec AD": 15, "VisA": 12, "CIFAR-10": 10}  # behind published means


class Row(NamedTuple):
    """A line of a table: a preset with what this line varies, and published numbers."""

    name: str
    preset: str | None = None  # None: published by others, and not measured here
    published: dict[str, dict[str, float]] = {}  # by data set, and by metric
    source: str = ""  # of the published numbers
    shots: int | None = None  # normal images to learn from; None takes all
    anomalies: int | None = 0  # anomalous images to learn from; None takes all
    parameters: dict[str, Any] = {}  # of the detector, in place of the preset's
    features: dict[str, Any] = {}  # of PatchFeatures, in place of the preset's
    batch: int = 0  # images of a call, where times are measured


class Table(NamedTuple):
    """Rows that are measured alike."""

    rows: list[Row]
    note: str = ""  # what differs from the paper beside the settings of the presets
    layout: str | None = None  # the only data set that the table is for
    load: dict[str, Any] = {}  # options of `skad.datasets.load`
    seeds: int = 3
    protocol: str = "accuracy"  # or "misaligned", or "latency"


def images(n: int) -> str:
    """So many images, in words."""
    return f"{n} image{'s' * (n != 1)}"

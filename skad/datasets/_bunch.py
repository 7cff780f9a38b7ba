"""The one form in which every data set is returned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skad._user_warning import warn_user
from skad.datasets._counts import warn_of_counts

GOOD = "good"

Mask = Any  # a Path, a list of them (one per defect), or an array of one frame


class Item(NamedTuple):
    """One image, its type ("good" if it is normal) and its mask."""

    image: Any
    kind: str
    mask: Mask | None = None
    expected: str = ""  # where the mask should be, for the message


def labels(kinds: Iterable[str]) -> NDArray[np.int64]:
    """+1 for normal images, -1 for all others."""
    return np.array([1 if kind == GOOD else -1 for kind in kinds], dtype=np.int64)


def make_bunch(
    layout: str,
    category: str,
    train: Any,
    test: Sequence[Item],
    *,
    anomalous: Sequence[Item] = (),
    validation: Sequence[Path] = (),
    has_masks: bool = True,
    require_masks: bool = True,
    check_counts: bool = True,
    **more: Any,
) -> Bunch:
    """Put a data set into its form, and check masks and numbers of images."""
    masks, unmasked = _masks(test, require_masks, has_masks)
    known, _ = _masks(anomalous, require_masks, has_masks)
    data = Bunch(
        train=train,
        test=[item.image for item in test],
        y_train=np.ones(len(train), dtype=np.int64),
        y_test=labels(item.kind for item in test),
        masks=masks,
        unmasked=unmasked,
        defect_types=[item.kind for item in test],
        anomalous=[item.image for item in anomalous],
        anomalous_masks=known,
        anomalous_types=[item.kind for item in anomalous],
        validation=list(validation),
        category=category,
        layout=layout,
        **more,
    )
    if check_counts:
        warn_of_counts(layout, category, counts_of(data))
    return data


def counts_of(data: Bunch) -> dict[str, int]:
    """Count the images of each part of a data set."""
    n_bad = int((data.y_test == -1).sum())
    counts = {
        "normal training": len(data.train),
        "anomalous training": len(data.anomalous),
        "validation": len(data.validation),
        "normal test": len(data.test) - n_bad,
        "anomalous test": n_bad,
    }
    counts["training"] = counts["normal training"] + counts["anomalous training"]
    counts["test"] = len(data.test)
    counts["normal"] = counts["normal training"] + counts["normal test"]
    counts["anomalous"] = counts["anomalous training"] + n_bad
    return counts


def _masks(
    items: Sequence[Item], required: bool, has_masks: bool
) -> tuple[list[Mask | None] | None, list[int]]:
    """Mask of each image, and the positions of anomalous images that have none."""
    lacking = [i for i, x in enumerate(items) if x.kind != GOOD and x.mask is None]
    if not has_masks:
        return None, lacking
    if lacking and required:
        first = items[lacking[0]]
        raise FileNotFoundError(
            f"The anomalous image {first.image} has no mask: expected "
            f"{first.expected}. Pass require_masks=False to go without masks."
        )
    if lacking:
        warn_user(
            f"{len(lacking)} of {sum(item.kind != GOOD for item in items)} anomalous "
            "images have no mask: leave the positions in `unmasked` out of pixel "
            "metrics, which take None for a normal image."
        )
    return [item.mask for item in items], lacking

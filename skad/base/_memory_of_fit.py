"""How much memory a fit takes, told before it starts."""

import math
from contextlib import AbstractContextManager
from typing import Any

from skad._memory import explained_shortage, require_memory

Shape = tuple[int, ...]
_COPYING = "kfold", "split"  # ways to hold out that learn from copies of samples


def learning_bytes(
    detector: Any, shape: Shape, itemsize: int, way: str, *, first: bool = True
) -> float:
    """Estimate of the bytes that learning takes beside the samples themselves.

    Parameters
    ----------
    detector : BaseDetector

    shape : (int, int, int, int)
        Of the samples: patch features, or images as the detector reads them.

    itemsize : int
        Bytes of a number.

    way : str
        As of `HOLD_OUT`: how images are held out.

    first : bool, default=True
        Whether it is a fit, not an update.

    Returns
    -------
    n_bytes : float
    """
    return sum(learning_parts(detector, shape, itemsize, way, first=first))


def learning_parts(
    detector: Any, shape: Shape, itemsize: int, way: str, *, first: bool = True
) -> tuple[float, float]:
    """Bytes of the model, and further ones that are free again after learning.

    Parameters are those of `learning_bytes`.
    """
    kept, passing = detector._fit_bytes(shape, itemsize, first=first)
    if way == "kfold":  # the model of a fold beside that of all
        passing += detector._fold_bytes(kept, shape, itemsize)
    elif way == "split" and not detector._reads_samples:  # four fifths to learn from
        passing += 0.8 * math.prod(shape) * itemsize
    return kept, passing


def require_memory_to_learn(
    detector: Any,
    shape: Shape,
    itemsize: int,
    way: str,
    *,
    first: bool = True,
    features: float = 0.0,
) -> None:
    """Raise a MemoryError before the work if it takes more than there is.

    Parameters are those of `learning_bytes`; `features` are the bytes of samples that
    are not in memory yet.
    """
    n_bytes = learning_bytes(detector, shape, itemsize, way, first=first) + features
    what = learning_of(detector, shape, "with" if features else "beside")
    require_memory(n_bytes, what, _advice(detector, way))


def learning_of(detector: Any, shape: Shape, how: str) -> str:
    """What takes the memory, for a message."""
    n, height, width, depth = shape
    name = type(detector).__name__
    if detector._reads_samples:
        return f"{name} on {n} images of {height} x {width} pixels"
    grids = f"{n} images ({height} x {width} patches of {depth} channels)"
    return f"{name} on {grids}, {how} their features,"


def _advice(detector: Any, way: str) -> str:
    advice = detector._memory_advice()
    if way in _COPYING and hasattr(detector, "_score_left_out"):
        return f"{advice} calibration='loo' needs no copies of the features."
    return advice


def learning(
    detector: Any, shape: Shape, way: str
) -> AbstractContextManager[None, bool | None]:
    """Explain what to change if memory is short in the middle of the work."""
    return explained_shortage(
        learning_of(detector, shape, "beside"), _advice(detector, way)
    )

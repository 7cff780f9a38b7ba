"""Pickles of estimators that can be loaded on any machine."""

from pathlib import PurePath
from typing import Any

import numpy as np


class Portable:
    """Mixin of all estimators: their pickles do not depend on the machine.

    A `pathlib` path of one operating system cannot be loaded on another one, and
    becomes a str. A tensor on a GPU cannot be loaded without one, so a network there is
    pickled as a copy on the CPU. The estimator itself stays as it is.
    """

    def __getstate__(self) -> dict[str, Any]:
        """State for a pickle, without paths and without tensors on a GPU."""
        return portable(super().__getstate__())


def portable(value: Any, _memo: dict[int, Any] | None = None) -> Any:
    """A value without paths and without tensors on a device other than the CPU.

    Containers are copied only if something in them changes, and equal objects stay one
    object.
    """
    memo: dict[int, Any] = {} if _memo is None else _memo
    if id(value) in memo:
        return memo[id(value)][1]
    if isinstance(value, PurePath):
        return str(value)
    found = value
    if type(value) is dict:
        parts = {portable(k, memo): portable(v, memo) for k, v in value.items()}
        if any(
            new_key is not key or new is not old
            for (new_key, new), (key, old) in zip(
                parts.items(), value.items(), strict=True
            )
        ):
            found = parts
    elif type(value) in (list, tuple, set, frozenset):
        items = [portable(item, memo) for item in value]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            found = type(value)(items)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        items = [portable(item, memo) for item in value.flat]
        if any(new is not old for new, old in zip(items, value.flat, strict=True)):
            found = np.empty(value.shape, object)
            found.ravel()[:] = items
    elif hasattr(value, "state_dict") and hasattr(value, "parameters"):
        found = _on_cpu(value)
    memo[id(value)] = value, found  # the value is kept: its id stays its own
    return found


def with_plain_arrays(value: Any) -> Any:
    """Lay out the arrays of a fitted estimator of scikit-learn as its pickle does.

    A pickle makes copies of arrays that are parts of larger ones, such as the
    components of `PCA`. Products with these round otherwise than with the parts, so
    that a model would not score as its own pickle does. Changes the estimator, and
    those in it; returns it.
    """
    state = getattr(value, "__dict__", {})
    for name, part in list(state.items()):
        if isinstance(part, np.ndarray):
            if not (part.flags.c_contiguous or part.flags.f_contiguous):
                state[name] = part.copy(order="C")
        elif isinstance(part, (list, tuple)):
            for item in part:
                if isinstance(item, tuple):
                    item = item[-1]  # a step with its name
                if hasattr(item, "get_params"):
                    with_plain_arrays(item)
        elif hasattr(part, "get_params"):
            with_plain_arrays(part)
    return value


def _on_cpu(module: Any) -> Any:
    """A network, or a copy of it on the CPU if it is elsewhere."""
    import copy

    tensors = module.state_dict(keep_vars=True).values()
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return module
    return copy.deepcopy(module).to("cpu")

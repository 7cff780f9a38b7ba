"""All that a model holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_PACKAGES = ("skad", "sklearn")


def objects(model: Any) -> Iterator[tuple[Any, str]]:
    """Yield each object in a model once, with its place, containers included.

    It looks into containers and into objects of skad and scikit-learn.
    """
    rest: list[tuple[Any, str]] = [(model, type(model).__name__)]
    seen: dict[int, Any] = {}  # the objects too: their ids stay their own
    while rest:
        value, place = rest.pop()
        if id(value) in seen or isinstance(value, (str, int, float, type(None))):
            continue
        seen[id(value)] = value
        yield value, place
        rest.extend(reversed(list(_parts(value, place))))


def _parts(value: Any, place: str) -> Iterator[tuple[Any, str]]:
    if isinstance(value, dict):
        yield from ((part, f"{place}[{key!r}]") for key, part in value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((part, f"{place}[{i}]") for i, part in enumerate(value))
    elif isinstance(value, np.ndarray):
        if value.dtype == object:
            yield from ((part, f"{place}[{i}]") for i, part in enumerate(value.flat))
    elif type(value).__module__.partition(".")[0] in _PACKAGES:
        for name, part in getattr(value, "__dict__", {}).items():
            yield part, f"{place}.{name}"

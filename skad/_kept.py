"""Caches in memory, bounded by bytes, outside of estimators.

A cache bounded by the number of its entries holds whatever these take: 512 matrices
of one size are nothing, of another a gigabyte. Every cache of this package that
outlives a call is a `ByteBounded`, or says beside it why it cannot grow.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import wraps
from hashlib import blake2b
from typing import Any

import numpy as np


class ByteBounded:
    """Cache bounded by bytes: it drops the values that were used longest ago.

    Threads may share one: a value is made once, and the others wait for it. A
    process that was forked meanwhile goes on with a lock of its own.

    Parameters
    ----------
    limit : int
        Bytes of all values together.

    keep_last : bool, default=False
        Whether the value used last stays even where it alone exceeds the limit, for
        what is too costly to make at every call. Otherwise it is not kept.
    """

    def __init__(self, limit: int, *, keep_last: bool = False) -> None:
        self.limit = limit
        self.keep_last = keep_last
        self._entries: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._renew_lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    @property
    def n_bytes(self) -> int:
        """Bytes of all values that are kept."""
        return sum(size for _, size in list(self._entries.values()))

    def get(
        self,
        key: Any,
        make: Callable[[], Any],
        *,
        is_current: Callable[[Any], bool] | None = None,
    ) -> Any:
        """Return the value kept for a key, or make and keep it.

        Parameters
        ----------
        key : hashable

        make : callable
            Makes the value.

        is_current : callable, optional
            Takes the value kept; False has it made anew.

        Returns
        -------
        value : object
        """
        with self._lock:
            value, _ = self._entries.get(key, (None, 0))
            if value is not None and (is_current is None or is_current(value)):
                self._entries.move_to_end(key)
                return value
            self.forget(key)
            value = make()
            size = size_in_bytes(value)
            if size <= self.limit or self.keep_last:
                self._entries[key] = value, size
                while self.n_bytes > self.limit and len(self._entries) > 1:
                    self._entries.popitem(last=False)
            return value

    def forget(self, key: Any) -> None:
        """Drop the value of a key, if there is one.

        It takes no lock, since the garbage collector may call it at any time.
        """
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Drop all values."""
        self._entries.clear()


def byte_bounded(limit: int) -> Callable[[Callable[..., Any]], Any]:
    """Keep the results of a function of hashable arguments, up to `limit` bytes."""

    def decorate(function: Callable[..., Any]) -> Any:
        cache = ByteBounded(limit)

        def cached(*arguments: Any) -> Any:
            return cache.get(arguments, lambda: function(*arguments))

        result: Any = wraps(function)(cached)
        result.cache = cache
        return result

    return decorate


def size_in_bytes(value: Any) -> int:
    """Bytes of the arrays, tensors and weights in a value."""
    if isinstance(value, (tuple, list)):
        return sum(map(size_in_bytes, value))
    if isinstance(value, dict):
        return sum(map(size_in_bytes, value.values()))
    if hasattr(value, "state_dict"):  # a module
        return sum(map(size_in_bytes, (*value.parameters(), *value.buffers())))
    return int(getattr(value, "nbytes", 0))


_PREPARED = ByteBounded(2**30, keep_last=True)
_HASHED_WORDS = 256  # words of 8 bytes that are added up before they are hashed


class _Prepared:
    """A value prepared for an estimator, and the state that it was made from."""

    def __init__(self, owner: Any, known: Any, value: Any) -> None:
        self.owner, self.known, self.value = owner, known, value
        self.nbytes = size_in_bytes(value)


def prepared(
    estimator: Any,
    prepare: Callable[[], Any],
    state: Mapping[str, np.ndarray],
    *settings: Any,
) -> Any:
    """Make what scoring needs from the state of a fitted estimator, once.

    It is kept outside of the estimator: neither written to it nor pickled with it,
    and dropped with it. It is made anew where the state or a setting is another than
    before, as after another fit. All estimators together keep up to a gigabyte, or the
    networks of one of them.

    Parameters
    ----------
    estimator : estimator
        Whose state it is. A copy has its own.

    prepare : callable
        Makes networks, tensors or arrays, alone or in a tuple, which must not refer
        to the estimator.

    state : dict of ndarray
        What it makes them from.

    *settings : object
        Whatever else the result depends on, such as device and layout.

    Returns
    -------
    value : object
        As `prepare` gives it. Threads share it.
    """
    key, known = id(estimator), (digest_of(state), *settings)

    def make() -> _Prepared:
        owner = weakref.ref(estimator, lambda _: _PREPARED.forget(key))
        return _Prepared(owner, known, prepare())

    def is_current(kept: _Prepared) -> bool:
        return kept.owner() is estimator and kept.known == known

    return _PREPARED.get(key, make, is_current=is_current).value


def digest_of(state: Mapping[str, np.ndarray]) -> bytes:
    """Digest of arrays by name, which changes also when one is written to.

    Hashing all bytes would take as long as making the networks. Sums of a few hundred
    words are hashed instead, which takes a twentieth of that.
    """
    found = blake2b(digest_size=16)
    for name, array in state.items():
        found.update(f"{name}{array.shape}{array.dtype}".encode())
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        n_whole = len(flat) // (8 * _HASHED_WORDS) * (8 * _HASHED_WORDS)
        words = flat[:n_whole].view(np.uint64).reshape(-1, _HASHED_WORDS)
        found.update(words.sum(axis=1).tobytes())
        found.update(flat[n_whole:].tobytes())
    return found.digest()

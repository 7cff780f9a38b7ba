"""Networks give the same bits whatever the process has set in torch.

A default dtype of float64, another default device, inference mode, disabled gradients
or autocast are choices of the code around skad. `own_torch_state` makes every network
of skad independent of them. What it changes is local to the thread: the default dtype,
which is one for the whole process, stays as it is, also while a network runs.
"""

import os
import sys
import threading
from contextlib import ExitStack, contextmanager
from functools import lru_cache, wraps

import numpy as np

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
_first_process = os.getpid()

# Held while a network runs. Hooks sit on modules that threads share, and a process that
# forked in the middle of a run would find them there: a fork waits for its end.
running = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=running.acquire,
        after_in_parent=running.release,
        after_in_child=running.release,
    )


@contextmanager
def own_torch_state():
    """Build, train or run a network independently of the caller's settings of torch.

    Inside, gradients are recorded, inference mode and autocast are off, and tensors
    that are made without a dtype or device are float32 on the CPU. Afterwards all is
    as it was. It must not enclose a ``yield`` to a caller.
    """
    torch = sys.modules.get("torch")
    if torch is None:  # nobody has set anything
        yield
        return
    _after_fork(torch)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in _AUTOCAST:
            if _autocasts(torch, kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.enter_context(_as_float32()())
        yield


def _autocasts(torch, kind):
    try:
        return torch.is_autocast_enabled(kind)
    except TypeError:  # before torch 2.4, each kind of device has a function
        names = {"cuda": "is_autocast_enabled", "cpu": "is_autocast_cpu_enabled"}
        return kind in names and getattr(torch, names[kind])()


def in_own_torch_state(function):
    """Decorate a function, but no generator, to run in `own_torch_state`."""

    @wraps(function)
    def guarded(*args, **kwargs):
        with own_torch_state():
            return function(*args, **kwargs)

    return guarded


def _after_fork(torch):
    """Use one thread in a process that was forked.

    The threads of OpenMP do not survive a fork; a child that wants to share work with
    them waits for ever.
    """
    global _first_process
    if os.getpid() != _first_process:
        torch.set_num_threads(1)
        _first_process = os.getpid()


@lru_cache(maxsize=1)
def _as_float32():
    """The class of a mode in which the default dtype is float32 for one thread."""
    import torch
    from torch.overrides import TorchFunctionMode

    by_default = {
        *(torch.empty, torch.zeros, torch.ones, torch.eye, torch.rand, torch.randn),
        *(torch.linspace, torch.logspace, torch.empty_strided, torch.empty_permuted),
        *(torch.hann_window, torch.hamming_window, torch.blackman_window),
        *(torch.bartlett_window, torch.kaiser_window),
        *(torch.fft.fftfreq, torch.fft.rfftfreq),
    }
    by_values = {
        *(torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor),
        *(torch.arange, torch.range, torch.full),
    }
    conversions = {
        *("to", "type", "type_as", "double", "half", "bfloat16", "view", "__get__"),
        *("empty_like", "zeros_like", "ones_like", "rand_like", "randn_like"),
        *("full_like", "new_tensor", "new_empty", "new_zeros", "new_ones", "new_full"),
    }

    class AsFloat32(TorchFunctionMode):
        """Functions that go by the default dtype give float32 instead."""

        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            name = getattr(func, "__name__", "")
            if kwargs.get("dtype") is not None or kwargs.get("out") is not None:
                return func(*args, **kwargs)
            if func in by_default:
                return func(*args, **{**kwargs, "dtype": torch.float32})
            found = func(*args, **kwargs)
            if (
                name in conversions
                or not isinstance(found, torch.Tensor)
                or found.dtype != torch.get_default_dtype()
            ):
                return found
            given = leaves((args, kwargs))
            if any(isinstance(leaf, (np.ndarray, np.generic)) for leaf in given):
                return found
            tensors = [leaf for leaf in given if isinstance(leaf, torch.Tensor)]
            if any(t.is_floating_point() or t.is_complex() for t in tensors):
                return found
            if func in by_values:
                return func(*args, **{**kwargs, "dtype": torch.float32})
            # An operation on integers whose result is not one, such as a division.
            args = tuple(_single(arg, func is torch.where) for arg in args)
            return func(*args, **kwargs).float()

    def _single(arg, numbers):
        if isinstance(arg, torch.Tensor) and arg.dtype != torch.bool:
            return arg.float()
        if numbers and isinstance(arg, float):
            return torch.tensor(arg, dtype=torch.float32)
        return arg

    return AsFloat32


def leaves(value):
    """All that is not a container, in nested tuples, lists and dicts."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return [value]
    return [leaf for part in value for leaf in leaves(part)]

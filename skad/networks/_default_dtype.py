"""A default dtype of float32 for one thread, whatever the process has set.

``torch.set_default_dtype`` is global; a `TorchFunctionMode` is local to its thread.
"""

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

# Their dtype is the default one unless they are told another.
_BY_DEFAULT = {
    *(torch.empty, torch.zeros, torch.ones, torch.eye, torch.rand, torch.randn),
    *(torch.linspace, torch.logspace, torch.empty_strided, torch.empty_permuted),
    *(torch.hann_window, torch.hamming_window, torch.blackman_window),
    *(torch.bartlett_window, torch.kaiser_window),
    *(torch.fft.fftfreq, torch.fft.rfftfreq),
}
# Their dtype is the default one if their values are Python's floats.
_BY_VALUES = {
    *(torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor),
    *(torch.arange, torch.range, torch.full),
}
# Names of those that take their dtype from a tensor or from a word of the caller.
_CONVERSIONS = {
    *("to", "type", "type_as", "double", "half", "bfloat16", "view", "__get__"),
    *("empty_like", "zeros_like", "ones_like", "rand_like", "randn_like"),
    *("full_like", "new_tensor", "new_empty", "new_zeros", "new_ones", "new_full"),
}


class Float32ByDefault(TorchFunctionMode):
    """Functions that go by the default dtype give float32 instead."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("dtype") is not None or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        if func in _BY_DEFAULT:
            return func(*args, **{**kwargs, "dtype": torch.float32})
        found = func(*args, **kwargs)
        if not _has_default_dtype(func, found, leaves((args, kwargs))):
            return found
        if func in _BY_VALUES:
            return func(*args, **{**kwargs, "dtype": torch.float32})
        # An operation on integers whose result is not one, such as a division.
        args = tuple(_as_float32(arg, func is torch.where) for arg in args)
        return func(*args, **kwargs).float()


def _has_default_dtype(func, found, arguments):
    """Whether the default dtype, and nothing else, gave a result its dtype."""
    if (
        getattr(func, "__name__", "") in _CONVERSIONS
        or not isinstance(found, torch.Tensor)
        or found.dtype != torch.get_default_dtype()
    ):
        return False
    if any(isinstance(leaf, (np.ndarray, np.generic)) for leaf in arguments):
        return False
    tensors = [leaf for leaf in arguments if isinstance(leaf, torch.Tensor)]
    return not any(t.is_floating_point() or t.is_complex() for t in tensors)


def _as_float32(arg, numbers):
    """An argument in float32: a tensor that is not boolean, and a float if asked."""
    if isinstance(arg, torch.Tensor) and arg.dtype != torch.bool:
        return arg.float()
    if numbers and isinstance(arg, float):
        return torch.tensor(arg, dtype=torch.float32)
    return arg


def leaves(value):
    """All that is not a container, in nested tuples, lists and dicts."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return [value]
    return [leaf for part in value for leaf in leaves(part)]

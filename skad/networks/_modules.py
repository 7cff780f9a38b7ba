"""Torch modules and optimizers: seeded, and as NumPy arrays that a pickle can hold."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from skad.networks._sampling import combined_seed


def generator(*numbers: int) -> torch.Generator:
    """A generator of torch on the CPU that several integers seed."""
    return torch.Generator().manual_seed(combined_seed(*numbers))


def seeded(build: Callable[[], Any], seed: int) -> Any:
    """A module with random weights that a seed determines."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def arrays(module: Any) -> dict[str, np.ndarray]:
    """Parameters and buffers of a module as NumPy arrays, by name."""
    return {k: v.detach().cpu().numpy().copy() for k, v in module.state_dict().items()}


def with_arrays(module: Any, state: Any) -> Any:
    """The module, with parameters and buffers from NumPy arrays."""
    module.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    return module


def rebuilt(build: Callable[[], Any], state: Any) -> Any:
    """Build a module with given weights, in evaluation mode, without random ones.

    It shares the memory of the arrays, so it is for looking only.
    """
    with torch.device("meta"):
        module = build()
    tensors = {
        k: torch.from_numpy(v if v.flags.writeable else v.copy())
        for k, v in state.items()
    }
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


def optimizer_arrays(optimizer: Any) -> Any:
    """State of an optimizer without tensors, for a pickle."""
    return _mapped(optimizer.state_dict(), "detach", lambda t: t.detach().cpu().numpy())


def optimizer_tensors(state: Any) -> Any:
    """Convert the result of `optimizer_arrays` for ``load_state_dict``."""
    return _mapped(state, "dtype", torch.tensor)


def _mapped(value: Any, attribute: str, convert: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {k: _mapped(v, attribute, convert) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(v, attribute, convert) for v in value]
    return convert(value) if hasattr(value, attribute) else value


def placed(module: Any, device: Any, *, channels_last: bool = True) -> Any:
    """The module on a device, with the memory layout in which it trains there."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    return module.to(device, memory_format=layout)


def tensors(arrays: Iterable[np.ndarray], device: Any) -> list[torch.Tensor]:
    """NumPy arrays as tensors on a device, copied."""
    return [torch.tensor(array, device=device) for array in arrays]

"""Make networks independent of what the caller has set in torch.

A default dtype of float64, another default device, inference mode, disabled gradients
or autocast are choices of the code around skad. `own_torch_state` makes every network
of skad independent of them. What it changes is local to the thread: the default dtype,
which is one for the whole process, stays as it is, also while a network runs.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from skad._matrices import use_one_thread_after_fork

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
_process = os.getpid()  # that imported skad, not a fork of it

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
def own_torch_state() -> Iterator[None]:
    """Build, train or run a network independently of the caller's settings of torch.

    Inside, gradients are recorded, inference mode and autocast are off, and tensors
    that are made without a dtype or device are float32 on the CPU. Afterwards all is
    as it was. It must not enclose a ``yield`` to a caller.
    """
    torch = sys.modules.get("torch")
    if torch is None:  # nobody has set anything
        yield
        return
    if os.getpid() != _process:
        use_one_thread_after_fork(torch)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in _AUTOCAST:
            if _autocasts(torch, device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            # A module with torch at its top, which is loaded by now.
            from skad.networks._default_dtype import Float32ByDefault

            stack.enter_context(Float32ByDefault())
        yield


def _autocasts(torch: Any, device: str) -> bool:
    try:
        return torch.is_autocast_enabled(device)
    except TypeError:  # before torch 2.4, each type of device has a function
        names = {"cuda": "is_autocast_enabled", "cpu": "is_autocast_cpu_enabled"}
        return device in names and getattr(torch, names[device])()


def in_own_torch_state(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function, but no generator, to run in `own_torch_state`."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        with own_torch_state():
            return function(*args, **kwargs)

    return guarded


def torch_device(name: Any) -> Any:
    """The device that "auto" or a name stands for.

    Parameters
    ----------
    name : str
        "auto" is a CUDA device where there is one, else the CPU.

    Returns
    -------
    device : torch.device

    Raises
    ------
    ValueError
        If it cannot be used here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()  # "meta" is a device that computes nothing
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={name!r} cannot be used: {error}. Use 'cpu', or 'auto' to take a "
            "CUDA device where there is one."
        ) from error
    return torch.device(name)

"""Memory of a training step, counted while the first one runs.

Before a network has run, nobody knows what its gradient needs. So the first step counts
what it saves for the gradient, and stops at once where the machine cannot hold that,
before the kernel would end the process.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from skad import _memory

_COPIES = 3  # of the weights: their gradient, and two moments of the optimizer
# What the whole step takes, by what it saves: 1.0 to 1.6, measured on five detectors.
_MORE = 1.2


@contextmanager
def counted_step(networks: Any, what: str, advice: str) -> Iterator[None]:
    """Stop a step that saves more for its gradient than there is memory.

    Parameters
    ----------
    networks : torch.nn.Module
        What is trained, on its device.

    what, advice : str
        As of `skad._memory.require_memory`.

    Raises
    ------
    MemoryError
        With both sizes, and the advice.
    """
    weights = [p for p in networks.parameters() if p.requires_grad]
    available = _available(weights)
    total = _COPIES * sum(p.numel() * p.element_size() for p in weights)
    seen = {p.untyped_storage().data_ptr() for p in networks.parameters()}

    def count(tensor: Any) -> Any:
        nonlocal total
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
                _memory.require_memory(_MORE * total, what, advice, available)
        return tensor.detach()  # the tensor itself would keep the step in memory

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield


def _available(weights: list[Any]) -> float:
    """Bytes that are left on the device of these weights."""
    device = weights[0].device if weights else torch.device("cpu")
    if device.type != "cuda":
        return _memory.available_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)

"""Networks by name: the one that ships with skad, and timm's.

Every estimator that takes the name of a network builds it here. timm is imported only
for its own networks.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

from skad.networks import _small
from skad.networks._default_dtype import leaves
from skad.networks._torch_state import running
from skad.networks._weights import identity


def build(name, weights, kwargs):
    """A network on the CPU, whose random weights torch's generator gives.

    Parameters
    ----------
    name : str

    weights : None, path or False

    kwargs : dict
        For ``timm.create_model``.

    Returns
    -------
    module : torch.nn.Module
        With the attributes of a timm model, in training mode.

    Raises
    ------
    ValueError
        If there is no such model, or the weights are not of this model.

    FileNotFoundError
        If there is no such file.

    OSError
        If pretrained weights cannot be found or downloaded.
    """
    identity(weights, None)
    if name == "skad_small" and _small.is_plain(weights, kwargs):
        return _small.build(weights is None, **kwargs)
    from skad.networks import _timm

    return _timm.build(name, weights, kwargs)


def used_arrays(module, run):
    """Parameters and buffers that take part in what ``run()`` computes, as arrays.

    On the CPU they share the memory of the module, which must not be changed then.
    """
    with running, _recorded(module) as used:
        run()
    state = module.state_dict(keep_vars=True)
    return {
        name: value.detach().cpu().numpy()
        for name, value in state.items()
        if used(name, value)
    }


class _Arguments(TorchFunctionMode):
    """Record the identity of each argument of every function of torch."""

    def __init__(self):
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.ids.update(map(id, leaves((args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


@contextmanager
def _recorded(module):
    """Tell which parameters take part in a run.

    Those of every module that is called, and those that are passed to any function.
    """
    called: set[str] = set()
    arguments = _Arguments()

    def note(name):
        return lambda *_: called.add(name)

    # What is compiled calls no hook of its parts.
    compiled = tuple(
        name
        for name, part in module.named_modules()
        if isinstance(part, torch.jit.ScriptModule)
    )
    handles = [
        part.register_forward_pre_hook(note(name))
        for name, part in module.named_modules()
        if not name.startswith(tuple(f"{outer}." for outer in compiled))
    ]
    try:
        with arguments:
            yield (
                lambda name, value: (
                    id(value) in arguments.ids
                    or name.rpartition(".")[0] in called
                    or name.startswith(tuple(f"{outer}." for outer in compiled))
                )
            )
    finally:
        for handle in handles:
            handle.remove()

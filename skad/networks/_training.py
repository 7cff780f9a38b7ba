"""What every method that trains shares: a loop to watch, interrupt and resume.

A step depends on the state of its parts and on its own number only: whatever is
drawn at random comes from `generator(seed, step)`. So a run that was cut off and
goes on from a checkpoint ends with the bits of one that was not. On a CUDA device,
where the fastest gradients add up in any order, slower ones are taken that do not.
"""

import math
import os
import time
import warnings
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np

from skad._progress import progress

_EVERY = 30.0  # seconds between checkpoints


def train(
    step,
    parts,
    n_steps,
    *,
    label,
    verbose=False,
    checkpoint=None,
    advice="warm_start=True goes on.",
):
    """Run steps, and report on them.

    Ctrl-C ends training early with a warning; what was learned stays.

    Parameters
    ----------
    step : callable
        Takes the number of the step, and returns its loss.

    parts : dict
        All that a step changes, by name: modules and optimizers.

    n_steps : int

    label : str
        For the progress bar.

    verbose : bool

    checkpoint : path, optional
        File to go on from, if it exists, and to save to every half a minute. It is
        removed after the last step.

    advice : str
        How to go on after Ctrl-C, for the warning.

    Returns
    -------
    losses : list of float
        One for each step.

    Raises
    ------
    ValueError
        If the loss is not finite, or the checkpoint cannot be read.
    """
    losses = [] if checkpoint is None else _resumed(checkpoint, parts)
    first, saved = len(losses), time.monotonic()
    bar = progress(n_steps, label, verbose, done=first, unit="step")
    with bar, _repeatable(parts):
        try:
            for number in range(first, n_steps):
                loss = float(step(number))
                if not np.isfinite(loss):
                    raise ValueError(
                        f"training diverged: the loss at step {number} is {loss}. Use "
                        "a smaller learning_rate, and check the scale of the input."
                    )
                losses.append(loss)
                bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                bar.update()
                now = time.monotonic()
                if checkpoint is not None and now - saved >= _EVERY:
                    _save(checkpoint, parts, losses)
                    saved = now
        except KeyboardInterrupt:
            warnings.warn(
                f"training was interrupted after {len(losses)} of {n_steps} steps; "
                f"the model is what it had learned until then. {advice}",
                stacklevel=2,
            )
            return losses
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return losses


def train_estimator(estimator, step, parts, n_steps, label, depends_on):
    """Run the steps of an estimator's fit by its own parameters.

    With ``warm_start=True``, the optimizer starts as an earlier fit left it, and is
    kept for the next one.

    Parameters
    ----------
    estimator : estimator
        Its parameters say what to report and where checkpoints go.

    step, parts, n_steps, label
        As of `train`; ``parts["optimizer"]`` is the optimizer.

    depends_on : callable
        Gives a tuple of what the result depends on beside the parameters, such as
        seed and data. It is called only if there are checkpoints.

    Returns
    -------
    losses : list of float
    """
    if estimator.warm_start and hasattr(estimator, "_optimizer_state"):
        state = optimizer_tensors(estimator._optimizer_state)
        parts["optimizer"].load_state_dict(state)
    checkpoint = None
    if estimator.checkpoint_dir is not None:
        settings = result_settings(estimator), *depends_on()
        checkpoint = checkpoint_file(estimator.checkpoint_dir, label.lower(), *settings)
    losses = train(
        step,
        parts,
        n_steps,
        label=label,
        verbose=estimator.verbose,
        checkpoint=checkpoint,
    )
    if estimator.warm_start:
        estimator._optimizer_state = optimizer_arrays(parts["optimizer"])
    return losses


@contextmanager
def _repeatable(parts):
    """Let a CUDA device give the same bits each time; the user's setting comes back."""
    import torch

    modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    if not any(p.is_cuda for module in modules for p in module.parameters()):
        yield
        return
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(max(before, 1))  # 1 warns of what cannot
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _resumed(checkpoint, parts):
    """Losses so far, after every part has got its state back."""
    import torch

    checkpoint = Path(checkpoint)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if not checkpoint.exists():
        return []
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except Exception as error:  # whatever torch and pickle raise here
        raise ValueError(
            f"the checkpoint {checkpoint} cannot be read; delete it to start anew."
        ) from error
    return state["losses"]


def _save(checkpoint, parts, losses):
    """Write a file that is either whole or not there, even if the process dies."""
    import torch

    state = {name: _plain(part.state_dict()) for name, part in parts.items()}
    waiting = f"{checkpoint}.{os.getpid()}"
    torch.save({"losses": losses, **state}, waiting)
    os.replace(waiting, checkpoint)


def _plain(value):
    """A state without NumPy's numbers, such as a learning rate that a search passed.

    A file that holds them is not read back.
    """
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


def checkpoint_file(folder, label, *settings):
    """Where a run keeps its checkpoint: one file per setting, seed and data.

    Parameters
    ----------
    folder : path or None

    label : str

    *settings : ndarray or object
        All that the result depends on.

    Returns
    -------
    file : Path or None
    """
    if folder is None:
        return None
    digest = sha256()
    for item in settings:
        if isinstance(item, np.ndarray):
            digest.update(f"{item.shape}{item.dtype}".encode())
            digest.update(np.ascontiguousarray(item).view(np.uint8).data)
        else:
            digest.update(repr(item).encode())
    return Path(folder) / f"{label}-{digest.hexdigest()[:16]}.pt"


def result_settings(estimator):
    """Parameters of an estimator without those that change no result."""
    irrelevant = {"checkpoint_dir", "verbose", "device", "warm_start", "n_jobs"}
    known = estimator.get_params(deep=False)
    return sorted((k, repr(v)) for k, v in known.items() if k not in irrelevant)


def mixed(*numbers):
    """One seed of 63 bits from several numbers."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def generator(*numbers):
    """A torch generator on the CPU that several numbers seed."""
    import torch

    return torch.Generator().manual_seed(mixed(*numbers))


def order(seed, epoch, n):
    """The order of n samples in an epoch."""
    return np.random.default_rng(mixed(seed, epoch)).permutation(n)


def cosine(number, n_steps):
    """Share of the learning rate at a step: from 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * number / n_steps)) / 2


def made_ahead(pool, make, n_samples, n_steps):
    """Samples of each step, made in threads while the step before is running.

    Parameters
    ----------
    pool : concurrent.futures.Executor

    make : callable
        ``make(step, k)`` gives the k-th sample of a step.

    n_samples : int
        Of each step.

    n_steps : int

    Returns
    -------
    samples : callable
        From the number of a step to the list of its samples; for numbers that grow
        by one.
    """
    waiting: dict[int, list] = {}

    def samples(number):
        for later in (number, number + 1):
            if later < n_steps and later not in waiting:
                waiting[later] = [pool.submit(make, later, k) for k in range(n_samples)]
        return [future.result() for future in waiting.pop(number)]

    return samples


def contents(read, n):
    """What tells n images from others, for `checkpoint_file`: the mean of each."""
    return np.array([read(i).mean(dtype=np.float64) for i in range(n)])


def seeded(build, seed):
    """A module with random weights that a seed determines."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def arrays(module):
    """Parameters and buffers of a module as NumPy arrays, by name."""
    return {k: v.detach().cpu().numpy().copy() for k, v in module.state_dict().items()}


def with_arrays(module, state):
    """The module, with parameters and buffers from NumPy arrays."""
    import torch

    module.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
    return module


def rebuilt(build, state):
    """A module in evaluation mode, made without drawing weights that are replaced.

    It shares the memory of the arrays, so it is for looking only.
    """
    import torch

    with torch.device("meta"):
        module = build()
    tensors = {
        k: torch.from_numpy(v if v.flags.writeable else v.copy())
        for k, v in state.items()
    }
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


def optimizer_arrays(optimizer):
    """State of an optimizer without tensors, for a pickle."""
    return _mapped(optimizer.state_dict(), "detach", lambda t: t.detach().cpu().numpy())


def optimizer_tensors(state):
    """What `optimizer_arrays` gave, for ``load_state_dict``."""
    import torch

    return _mapped(state, "dtype", torch.tensor)


def _mapped(value, attribute, convert):
    if isinstance(value, dict):
        return {k: _mapped(v, attribute, convert) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(v, attribute, convert) for v in value]
    return convert(value) if hasattr(value, attribute) else value


def torch_device(name):
    """The device that "auto" or a name stands for.

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

"""The training loop of all networks, with progress, checkpoints and resuming.

A step depends on the state of its parts and on its own number only: whatever is random
in it has a seed that contains the number (`skad.networks._sampling`). So a run that was
cut off and resumes from a checkpoint ends with the bits of one that was not. On a CUDA
device, where the fastest gradients add up in any order, slower ones are taken that do
not.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from skad._memory import explained_shortage
from skad._progress import progress
from skad._user_warning import warn_user
from skad.networks._step_memory import counted_step

CHECKPOINT_SECONDS = 30.0  # between two checkpoints


def train(
    loss: Any,
    networks: Any,
    optimizer: Any,
    n_steps: int,
    *,
    rate: Callable[[int], float] | None = None,
    what: str = "a step of training",
    advice_on_memory: str = "Reduce train_batch_size or image_size.",
    **options: Any,
) -> list[float]:
    """Train networks by gradient descent.

    Parameters
    ----------
    loss : callable
        ``loss(step)`` gives the loss of a step, a tensor of one number.

    networks : torch.nn.Module
        On their device, in training mode.

    optimizer : torch.optim.Optimizer
        Its learning rates are those that `rate` multiplies.

    n_steps : int

    rate : callable, optional
        ``rate(step)`` gives the share of the learning rates at a step. Without it,
        they stay.

    what, advice_on_memory : str
        What to say if memory is too short for a step, as of
        `skad._memory.require_memory`.

    **options : dict
        As of `run_steps`.

    Returns
    -------
    losses : list of float
        One for each step.

    Raises
    ------
    ValueError
        If the loss is not finite, or the checkpoint cannot be read.

    MemoryError
        If a step needs more memory than there is.
    """
    scheduler = LambdaLR(optimizer, rate or (lambda step: 1.0))

    is_counted = False

    def step(number: int) -> Any:
        nonlocal is_counted
        counting: AbstractContextManager[None] = nullcontext()
        if not is_counted:
            is_counted = True
            counting = counted_step(networks, what, advice_on_memory)
        with counting:
            value = loss(number)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        scheduler.step()
        return value.detach()

    parts = {"networks": networks, "optimizer": optimizer, "scheduler": scheduler}
    parts |= options.pop("parts", {})
    with _repeatable(networks), explained_shortage(what, advice_on_memory):
        return run_steps(step, parts, n_steps, **options)


def run_steps(
    step: Any,
    parts: Any,
    n_steps: int,
    *,
    label: str,
    verbose: bool = False,
    checkpoint: Path | None = None,
    advice: str = "warm_start=True goes on.",
) -> list[float]:
    """Run steps with progress and checkpoints.

    Ctrl-C ends the run early with a warning; the parts stay as they are then.

    Parameters
    ----------
    step : callable
        ``step(number)`` runs a step, and returns its loss.

    parts : dict
        All that a step changes, by name: objects with ``state_dict`` and
        ``load_state_dict``.

    n_steps : int

    label : str
        For the progress bar.

    verbose : bool, default=False

    checkpoint : path, optional
        File to resume from, if it exists, and to save to every half a minute. It is
        removed after the last step.

    advice : str
        How to continue after Ctrl-C, for the warning.

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
    with progress(n_steps, label, verbose, done=first, unit="step") as bar:
        try:
            for number in range(first, n_steps):
                losses.append(_finite(float(step(number)), number))
                bar.set_postfix_str(f"loss {losses[-1]:.4g}", refresh=False)
                bar.update()
                now = time.monotonic()
                if checkpoint is not None and now - saved >= CHECKPOINT_SECONDS:
                    _save(checkpoint, parts, losses)
                    saved = now
        except KeyboardInterrupt:
            warn_user(
                f"training was interrupted after {len(losses)} of {n_steps} steps; "
                f"the model is what it had learned until then. {advice}"
            )
            return losses
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return losses


def cosine(step: int, n_steps: int) -> float:
    """Share of the learning rate at a step: from 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * step / n_steps)) / 2


def load_optimizer(optimizer: Any, state: Any) -> None:
    """Continue with the state of another optimizer, but with one's own options.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer

    state : dict
        As of ``state_dict``. Learning rates in it are where a schedule ended, and other
        options are those of an earlier fit.
    """
    groups = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update({k: v for k, v in own.items() if k != "params"})
        group.pop("initial_lr", None)  # a scheduler would start from it


def _finite(loss: Any, number: int) -> Any:
    if not np.isfinite(loss):
        raise ValueError(
            f"training diverged: the loss at step {number} is {loss}. Use a smaller "
            "learning_rate, and check the scale of the input."
        )
    return loss


@contextmanager
def _repeatable(networks: Any) -> Iterator[None]:
    """Let a CUDA device give the same bits each time; the user's setting comes back."""
    if not any(p.is_cuda for p in networks.parameters()):
        yield
        return
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(max(before, 1))  # 1 warns of what cannot
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


# -- checkpoints -----------------------------------------------------------------


def checkpoint_file(folder: Any, label: str, *settings: Any) -> Path | None:
    """Path of the checkpoint of a run: one file per setting, seed and data.

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


def result_settings(estimator: Any) -> list[tuple[str, str]]:
    """Parameters of an estimator without those that change no trained weight."""
    irrelevant = {"checkpoint_dir", "verbose", "device", "warm_start", "n_jobs"}
    known = estimator.get_params(deep=False)
    return sorted((k, repr(v)) for k, v in known.items() if k not in irrelevant)


def _resumed(checkpoint: Any, parts: Any) -> list[float]:
    """Restore the state of every part from a checkpoint; returns losses so far."""
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


def _save(checkpoint: Any, parts: Any, losses: Any) -> None:
    """Write a file that is either whole or not there, even if the process dies."""
    state = {name: _plain(part.state_dict()) for name, part in parts.items()}
    unfinished = f"{checkpoint}.{os.getpid()}"
    torch.save({"losses": losses, **state}, unfinished)
    os.replace(unfinished, checkpoint)


def _plain(value: Any) -> Any:
    """A state without NumPy's numbers, such as a learning rate that a search passed.

    A file that holds them is not read back.
    """
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value

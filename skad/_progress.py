"""Progress bars of long work, on the standard error stream."""

from typing import Any

from tqdm import tqdm


def progress(
    total: int, label: str, verbose: bool | int, *, done: int = 0, unit: str = "it"
) -> Any:
    """Return a bar for a number of steps; it shows nothing unless `verbose`.

    Parameters
    ----------
    total : int
        Number of steps.

    label : str
        What the steps are about.

    verbose : bool or int

    done : int, default=0
        Steps that an earlier run has done; the speed does not count them.

    unit : str, default="it"
        Name of one step.

    Returns
    -------
    bar : tqdm.tqdm
        A context manager; ``bar.update(n)`` reports n steps more.
    """
    return tqdm(total=total, desc=label, initial=done, unit=unit, disable=not verbose)

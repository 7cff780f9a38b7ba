"""An error before the work starts, where memory cannot suffice."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_LIMITS = "memory.max", "memory/memory.limit_in_bytes"  # versions 2 and 1


def memory_limit() -> float:
    """Bytes that this process can have at most: of the machine, or of its container.

    Memory that others use at the moment counts, and so does swap space. Infinite where
    the system does not tell.
    """
    limits = [_machine_memory()]
    for name in _LIMITS:
        try:
            limits.append(float((_CGROUPS / name).read_text()))
        except (OSError, ValueError):  # there is none, or it is "max"
            continue
    return min(limits)


def _machine_memory() -> float:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf
    if memory <= 0:
        return math.inf
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        swap = next(line for line in lines if line.startswith("SwapTotal"))
        return memory + 1024 * int(swap.split()[1])
    except (OSError, StopIteration, ValueError, IndexError):
        return memory


def require_memory(n_bytes: float, what: str, advice: str) -> None:
    """Raise if so many bytes exceed all memory that there is.

    It never refuses what might fit: only this one estimate counts, not what is in use.

    Parameters
    ----------
    n_bytes : float
        Estimate of what is needed.

    what : str
        What needs it, as the start of a sentence.

    advice : str
        Sentences that say what to change.

    Raises
    ------
    MemoryError
        With both sizes, and the advice.
    """
    limit = memory_limit()
    if n_bytes > limit:
        raise MemoryError(
            f"{what} take {_size(n_bytes)}, but this machine, or the container that "
            f"the process runs in, has {_size(limit)} of memory. {advice}"
        )


def _size(n_bytes: float) -> str:
    """A number of bytes for people, as 12.3 GB."""
    power = min(int(math.log10(n_bytes * 1.0005)) // 3, 4)
    return f"{n_bytes / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"

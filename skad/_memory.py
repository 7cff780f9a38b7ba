"""An error before the work starts, where memory cannot suffice, and a clear one later.

Both say how much is needed and there is, and which parameters to change.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_PROCESS = Path("/proc/self")
_MACHINE = Path("/proc/meminfo")
# Files of a limit and of what is used, and how lines of memory.stat begin that tell
# what of it can be dropped: versions 2 and 1.
_CGROUP_FILES = (
    ("", "memory.max", "memory.current", ""),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
_DROPPABLE = "inactive_file", "active_file"  # copies of files
# What torch says where an allocation fails, on CPUs and on CUDA devices.
_SHORTAGES = "out of memory", "can't allocate memory", "not enough memory"

_CHECK: ContextVar[Callable[[tuple[int, ...]], None] | None] = ContextVar(
    "check", default=None
)


class OutOfMemory(MemoryError):
    """A `MemoryError` whose text says which parameters to change."""


def available_memory() -> float:
    """Bytes of memory that this process can have at the moment, beside what it has.

    The least of what the machine has left, with swap space, what its container (its
    control groups) may still take, without it, and what is left of the limits of the
    process (``ulimit -v`` and ``-d``). Infinite where the system does not tell.
    """
    return max(0.0, min(_machine_memory(), _container_memory(), _process_memory()))


def _machine_memory() -> float:
    try:
        lines = dict(line.split(":") for line in _MACHINE.read_text().splitlines())
        names = "MemAvailable", "SwapFree"
        return 1024.0 * sum(int(lines[name].split()[0]) for name in names)
    except (OSError, KeyError, ValueError, IndexError):
        pass
    try:  # on other systems, all that there is
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # Windows
        return math.inf


def _container_memory() -> float:
    """What the control groups of the process leave: its own and those around it."""
    left = [math.inf]
    for controller, limit, used, start in _CGROUP_FILES:
        root = _CGROUPS / controller
        own = root / _own_group(controller).strip("/")
        for folder in (own, *own.parents):
            if (most := _number(folder / limit)) is not None:
                taken = _number(folder / used) or 0.0
                dropped = sum(_statistic(folder, start + name) for name in _DROPPABLE)
                left.append(most - taken + dropped)
            if folder == root:
                break
    return min(left)


def _own_group(controller: str) -> str:
    """Path of the control group of this process, as the kernel names it."""
    try:
        for line in (_PROCESS / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                return path
    except (OSError, ValueError):
        pass
    return ""


def _number(file: Path) -> float | None:
    try:
        return float(file.read_text())
    except (OSError, ValueError):  # there is none, or it is "max"
        return None


def _statistic(folder: Path, name: str) -> float:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        return float(dict(line.split() for line in lines)[name])
    except (OSError, KeyError, ValueError):
        return 0.0


def _process_memory() -> float:
    """What the limits of the process leave of address space and of data."""
    try:
        import resource

        pages = [int(n) for n in (_PROCESS / "statm").read_text().split()]
    except (ImportError, OSError, ValueError):  # not on Linux
        return math.inf
    left = [math.inf]
    for name, n_pages in (("RLIMIT_AS", pages[0]), ("RLIMIT_DATA", pages[5])):
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY:
            left.append(float(limit - n_pages * resource.getpagesize()))
    return min(left)


def require_memory(
    n_bytes: float, what: str, advice: str, available: float | None = None
) -> None:
    """Raise if so many bytes are more than this process can have.

    Parameters
    ----------
    n_bytes : float
        Estimate of what is needed beside what the process has.

    what : str
        What needs it, as the start of a sentence.

    advice : str
        Sentences that say what to change.

    available : float, optional
        What there is; by default `available_memory`.

    Raises
    ------
    MemoryError
        With both sizes, and the advice.
    """
    left = available_memory() if available is None else available
    if n_bytes > left:
        raise OutOfMemory(
            f"{what} needs {_size(n_bytes)} of memory, but the machine, its container "
            f"and the limits of this process leave {_size(left)}. {advice}"
        )


@contextmanager
def checked_features(check: Callable[[tuple[int, ...]], None]) -> Iterator[None]:
    """Let `check` see the shape of features before these are extracted for a fit.

    So what comes after the extraction can refuse them before it. It holds for the
    thread that calls.
    """
    token = _CHECK.set(check)
    try:
        yield
    finally:
        _CHECK.reset(token)


def check_features(shape: tuple[int, ...]) -> None:
    """Tell the shape of features that are to be extracted for a fit."""
    check = _CHECK.get()
    if check is not None:
        check(shape)


@contextmanager
def explained_shortage(what: str, advice: str) -> Iterator[None]:
    """Say what to change where an allocation fails, on the host or on a device.

    Parameters
    ----------
    what, advice : str
        As of `require_memory`.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        is_shortage = any(words in text for words in _SHORTAGES)
        if not (is_shortage or isinstance(error, MemoryError)):
            raise
        reason = text.strip().split("\n")[0] or "an allocation failed"
        raise OutOfMemory(
            f"{what} needs more memory than there is ({reason}). {advice}"
        ) from error


def _size(n_bytes: float) -> str:
    """A number of bytes for people, as 12.3 GB."""
    power = min(int(math.log10(max(n_bytes, 1) * 1.0005)) // 3, 4)
    return f"{n_bytes / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"

"""Progress of long work, printed to the standard error stream on request."""

import sys
import time
from contextlib import contextmanager


class _Bar:
    def __init__(self, total, label, shown):
        self.total, self.label, self.shown = total, label, shown
        self.started = self.printed = time.monotonic()

    def update(self, n):
        """Say that n more steps are finished."""
        self.done = getattr(self, "done", 0) + n
        self.reach(self.done)

    def reach(self, done, note=""):
        """Say that `done` of the total steps are finished."""
        now = time.monotonic()
        if not self.shown or (now - self.printed < 0.5 and done < self.total):
            return
        self.printed = now
        left = (now - self.started) / max(done, 1) * (self.total - done)
        sys.stderr.write(
            f"\r{self.label}: {done}/{self.total}, {left:.0f} s left{note} "
        )
        sys.stderr.flush()


@contextmanager
def progress(total, label, verbose):
    """Context that gives a bar; it prints nothing unless `verbose`."""
    bar = _Bar(total, label, bool(verbose))
    try:
        yield bar
    finally:
        if bar.shown:
            sys.stderr.write("\n")

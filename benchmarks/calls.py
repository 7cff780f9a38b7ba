"""How often control changes from one source file of skad to another.

    python benchmarks/calls.py

A reader who follows a call through the library turns a page at every change of file.
Two calls are followed: `fit` of a pipeline of `PatchFeatures` and `PatchCoreDetector`
on 24 image files, and `anomaly_map` of one file. Both run once before they are
counted, so that imports, networks and matrices that are kept do not count.

A change of file is a call of a function of skad whose nearest caller in skad, in the
same thread, is in another file. Going on with a generator is a call, too; a return is
none. Frames of Python, PyTorch or scikit-learn in between are passed over, and where no
caller is in skad, as at the start of a thread, there is nothing to change from.

Beside the changes, the table has the number of files involved, and how often an image
file was opened at most.
"""

import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from harness import parser, publish
from PIL import Image

N_IMAGES = 24
LIMITS = {"fit": 150, "anomaly_map": 40}


class Trace:
    """Changes of file within a folder of sources, and openings of image files.

    Attributes
    ----------
    changes : Counter of (str, str)
        Calls by the names of the calling and of the called file.

    files : set of str
        Names of the files of which a function was called.

    opened : Counter of str
        How often each file of `watched` was opened.
    """

    def __init__(self, folder, watched=()):
        self.folder = f"{folder}/"
        self.watched = set(map(str, watched))
        self.changes, self.opened, self.files = Counter(), Counter(), set()
        self._lock = threading.Lock()

    @property
    def n_changes(self):
        return self.changes.total()

    def profile(self, frame, event, _):
        """Take note of an event; an argument of `sys.setprofile`."""
        if event != "call" or not (called := self._name(frame)):
            return
        self.files.add(called)
        caller = frame.f_back
        while caller is not None and not self._name(caller):
            caller = caller.f_back
        if caller is not None and self._name(caller) != called:
            with self._lock:
                self.changes[self._name(caller), called] += 1

    def audit(self, event, arguments):
        """Take note of a file that is opened; an argument of `sys.addaudithook`."""
        if event == "open" and str(arguments[0]) in self.watched:
            with self._lock:
                self.opened[str(arguments[0])] += 1

    def _name(self, frame):
        path = frame.f_code.co_filename
        return path.removeprefix(self.folder) if path.startswith(self.folder) else ""


_active: list[Trace] = []


def _audit(event, arguments):
    for trace in _active:
        trace.audit(event, arguments)


@contextmanager
def tracing(trace):
    """Let a `Trace` follow what happens inside, in this thread and in new ones."""
    if not hasattr(tracing, "hooked"):  # audit hooks stay until the process ends
        sys.addaudithook(_audit)
        tracing.hooked = True
    before = sys.getprofile(), threading.getprofile()
    _active.append(trace)
    threading.setprofile(trace.profile)
    sys.setprofile(trace.profile)
    try:
        yield trace
    finally:
        sys.setprofile(before[0])
        threading.setprofile(before[1])
        _active.remove(trace)


def image_files(folder, n=N_IMAGES, size=256):
    """Write images of smooth noise, always the same ones; returns their paths."""
    paths = []
    for i in range(n):
        coarse = np.random.default_rng(i).integers(256, size=(8, 8, 3), dtype=np.uint8)
        path = Path(folder, f"{i:02}.png")
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(
            path
        )
        paths.append(path)
    return paths


def counted(paths, image_size=64):
    """Follow `fit` and `anomaly_map`.

    Returns
    -------
    traces : dict of Trace
        By the name of the call.
    """
    import skad

    def new_model():
        features = skad.PatchFeatures(
            "skad_small", embedding="concat", image_size=image_size
        )
        return skad.Pipeline([features, skad.PatchCoreDetector()])

    model = new_model().fit(paths)
    model.anomaly_map(paths[:1])
    source = Path(skad.__file__).parent
    traces = {name: Trace(source, paths) for name in LIMITS}
    model = new_model()
    with tracing(traces["fit"]):
        model.fit(paths)
    with tracing(traces["anomaly_map"]):
        model.anomaly_map(paths[:1])
    return traces


def main():
    arguments = parser(__doc__)
    arguments.add_argument(
        "--each", action="store_true", help="print every pair of files, too"
    )
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = image_files(folder)
        traces = counted(paths)
    rows = []
    for name, limit in LIMITS.items():
        trace = traces[name]
        within = "" if trace.n_changes < limit else " (missed)"
        most = max(trace.opened.values(), default=0)
        n_images = N_IMAGES if name == "fit" else 1
        case = f"`{name}` of {n_images} file{'s' if n_images > 1 else ''}"
        target = f"< {limit}{within}"
        rows.append((case, trace.n_changes, len(trace.files), most, target))
        if options.each:
            for (calling, called), n in trace.changes.most_common():
                print(f"{n:6} {calling} -> {called}")
    header = ("call", "changes of file", "files", "openings of a file", "target")
    publish(options, "calls", rows, header)


if __name__ == "__main__":
    main()

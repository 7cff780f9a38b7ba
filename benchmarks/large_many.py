"""Many images: memory and time of a PatchCore that learns them block by block.

    python benchmarks/large.py --part many

writes `--many` small JPEG files, photographs of magnetic tiles by flips, shifts and
brightness, and fits ``PatchCoreDetector(bank_size=16384)`` on them behind `skad_small`
in a `skad.Pipeline`, in a process of its own. Its memory is looked up after each batch
of each pass over the images. The bare network, which reads the same files and passes
their features to nobody, runs before and after. Times are of the CPU.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import limit_threads, publish, timing
from large_parallel import image_files

SIDE, BANK_SIZE = 256, 16_384
HEADER = ("images", "side", "bare network, CPU", "first pass", "second pass")
HEADER += ("fit, of bare", "memory", "slopes, kB per image")


def memory(field):
    """Bytes of this process (Linux): "VmHWM" is the peak, "VmRSS" what it has now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


class Watched:
    """Batches that note when each one was asked for, and the memory at that time."""

    def __init__(self, batches, passes):
        self.batches, self.passes = batches, passes

    def __iter__(self):
        notes, n = [], 0
        self.passes.append(notes)
        for batch in self.batches:
            notes.append((n, time.process_time(), memory("VmRSS")))
            yield batch
            n += len(batch[0])
        notes.append((n, time.process_time(), memory("VmRSS")))


def watched_features(side, passes):
    """`skad_small` whose batches are noted in `passes`."""
    from skad import PatchFeatures

    class WatchedFeatures(PatchFeatures):
        def _fit_batches(self, X, y=None, regions=None):
            return Watched(super()._fit_batches(X, y, regions), passes)

    return WatchedFeatures("skad_small", image_size=side)


def bare(features, paths):
    """CPU seconds per image of the network alone."""
    started = time.process_time()
    for _ in features._normal_batches(paths):
        pass
    return (time.process_time() - started) / len(paths)


def slope(notes, per_image=0):
    """Bytes by which memory grows with each image, but for the first fifth of them."""
    n, _, size = np.array(notes).T
    late = n >= n[-1] / 5
    return np.polyfit(n[late], size[late], 1)[0] - per_image


def measure(paths, side, bank_size, n_threads):
    """Fit and print what came out, as JSON; runs in a process of its own."""
    from skad import PatchCoreDetector, PatchFeatures, Pipeline

    limit_threads(n_threads)
    some = paths[:: max(1, len(paths) // 500)]
    plain = PatchFeatures("skad_small", image_size=side)
    plain.fit(some[:8])
    before = bare(plain, some)
    passes = []
    detector = PatchCoreDetector(bank_size=bank_size)
    model = Pipeline([watched_features(side, passes), detector])
    started = time.process_time()
    model.fit(paths)
    seconds = time.process_time() - started
    after = bare(plain, some)
    one_map = detector.calibration_maps_[0].nbytes
    result = {
        "bare": (before + after) / 2,
        "passes": [(notes[-1][1] - notes[0][1]) / len(paths) for notes in passes],
        "fit": seconds / len(paths),
        "memory": memory("VmHWM"),
        "maps": detector.calibration_maps_.nbytes,
        "slopes": [slope(notes, i * one_map) for i, notes in enumerate(passes)],
        "notes": passes,
    }
    print(json.dumps(result))


def many(options):
    """What a fit on many images takes, beside the bare network."""
    n, side, bank_size = options.many, SIDE, BANK_SIZE
    if options.small:
        n, side, bank_size = 64, 64, 256
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in image_files(options, folder, n, SIDE)]
        listed = Path(folder, "arguments.json")
        listed.write_text(json.dumps([paths, side, bank_size, options.threads]))
        code = "import json, sys, large_many as l; l.measure(*json.load(open({!r})))"
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code.format(str(listed))],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
    found = json.loads(run.stdout.splitlines()[-1])
    row = [
        f"{n:,}",
        side,
        timing(found["bare"]),
        *map(timing, found["passes"]),
        f"{found['fit'] / found['bare']:.2f}",
        f"{found['memory'] / 1e6:.0f} MB, {found['maps'] / 1e6:.0f} of it maps",
        ", ".join(f"{each / 1e3:.2f}" for each in found["slopes"]),
    ]
    publish(options, "many images", [row], HEADER)
    return found

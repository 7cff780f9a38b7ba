"""A camera loop: python camera_loop.py part.onnx FOLDER; files stand for a camera.

It needs no PyTorch, only NumPy, onnxruntime and, for files, Pillow.
"""

import sys
import time
from pathlib import Path

import numpy as np

from skad.export import OnnxDetector


def camera(folder):
    """Yield images as they come."""
    yield from sorted(Path(folder).glob("*.png"))


def inspect(detector, image):
    """Say of one image whether it is rejected, and where its defects are."""
    answer = detector.answers([image], ["label", "p_value", "mask"])
    if answer["label"][0] == 1:
        return "ok"
    rows = np.flatnonzero(answer["mask"][0].any(axis=1))
    where = f"rows {rows[0]} to {rows[-1]}" if len(rows) else "no single pixel"
    return f"reject, p = {answer['p_value'][0]:.3f}, {where}"


if __name__ == "__main__":
    detector = OnnxDetector(sys.argv[1])
    for image in camera(sys.argv[2]):
        start = time.perf_counter()
        verdict = inspect(detector, image)
        print(
            f"{image.name}: {verdict} ({1000 * (time.perf_counter() - start):.0f} ms)"
        )

"""A training step of SimpleNet against the floating-point operations that it needs.

    python benchmarks/training.py

The floor is the number of operations of the matrix products of a step over the rate at
which this machine multiplies matrices of these shapes.
"""

import time
import warnings

import numpy as np
from harness import cost_row, limit_threads, parser, publish

from skad import SimpleNetDetector

PATCHES = 28 * 28
CASES = ((128, 1024), (512, 1024), (1024, 1024), (1536, 1024))


def rate(rows, n_in, n_out, rounds):
    """Floating-point operations per second of one product."""
    import torch

    a, b = torch.rand(rows, n_in), torch.rand(n_in, n_out)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * rows * n_in * n_out / np.median(seconds[1:])


def operations(rows, d, hidden):
    """Of the adaptor on `rows`, and of the discriminator on twice as many.

    Forward, and the gradients of the weights; that of the input of the adaptor is not
    needed, since the features are fixed.
    """
    return 2 * rows * d * d * 2 + 2 * (2 * rows) * d * hidden * 3


def step_time(d, hidden, n_steps, batch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(batch, 28, 28, d)).astype(np.float32)
    times = []

    class Watched(SimpleNetDetector):
        def _rate(self, step, n_steps):
            times.append(time.perf_counter())
            return super()._rate(step, n_steps)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Watched(n_steps, hidden_dim=hidden, calibration="train").fit(X)
    return float(np.median(np.diff(times)))


def main():
    options = parser(__doc__).parse_args()
    limit_threads(options.threads)
    batch, n_steps = (1, 4) if options.small else (4, 20)
    rows = []
    for d, hidden in CASES[:1] if options.small else CASES:
        n = batch * PATCHES
        speed = rate(2 * n, d, hidden, options.rounds)
        floor = operations(n, d, hidden) / speed
        case = f"{batch} images, {d} channels, {hidden} hidden"
        peer = f"floor at {speed / 1e9:.0f} GFLOP/s"
        rows.append(
            cost_row(case, step_time(d, hidden, n_steps, batch), peer, floor, 1.5)
        )
    publish(
        options, "training", rows, ("case", "a step", "peer", "floor", "cost", "target")
    )


if __name__ == "__main__":
    main()

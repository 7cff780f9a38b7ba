"""Training steps against their floor: what the networks alone would take.

    python benchmarks/training.py

For EfficientAD, DRAEM, CutPaste and PRN, in configurations that a processor trains in
minutes, the floor is one step of the networks alone on a batch that lies ready: forward
and backward passes, frozen networks included, and the step of the optimizer. A step of
a fit also reads and changes images, makes synthetic anomalies, and computes the loss.

For SimpleNet, whose networks are small, the floor is stricter: the number of operations
of the matrix products of a step over the rate at which this machine multiplies matrices
of these shapes.
"""

import time
import warnings

import numpy as np
from harness import cost_row, limit_threads, parser, photographs, publish

from skad import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    PRNDetector,
    SimpleNetDetector,
)
from skad.detectors import Teacher

PATCHES = 28 * 28
CASES = ((128, 1024), (512, 1024), (1024, 1024), (1536, 1024))
N_IMAGES = 24  # to train on; they are read in the first steps
SETTLED = 2  # steps before times count


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


def watched(detector, images, n_steps, networks_of=None):
    """Median times of a step of a fit, and of one of its networks alone, in seconds."""
    found = {}

    class Watched(type(detector)):
        def _rate(self, step, n_steps):  # asked when the step before is done
            found["ends"][step] = time.perf_counter()
            return super()._rate(step, n_steps)

        def _train(self, module, data, seed):
            found["ends"] = {}
            losses = super()._train(module, data, seed)
            if networks_of is not None:
                forward = networks_of(self, module)
                optimizer = self._optimizer(module)
                found["bare"] = bare_times(forward, optimizer, n_steps)
            return losses

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Watched(**detector.get_params(deep=False)).fit(images)
    steps = np.diff(list(found["ends"].values()))
    return np.median(steps[SETTLED:]), np.median(found.get("bare", steps)[SETTLED:])


def bare_times(forward, optimizer, n_steps):
    seconds = []
    for _ in range(n_steps):
        start = time.perf_counter()
        value = forward()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def simplenet(options):
    batch, n_steps = (1, 4) if options.small else (4, 20)
    rows = []
    for d, hidden in CASES[:1] if options.small else CASES:
        n = batch * PATCHES
        speed = rate(2 * n, d, hidden, options.rounds)
        floor = operations(n, d, hidden) / speed
        case = f"SimpleNet, {batch} images, {d} channels, {hidden} hidden"
        peer = f"floor at {speed / 1e9:.0f} GFLOP/s"
        X = np.random.default_rng(0).normal(size=(batch, 28, 28, d))
        detector = SimpleNetDetector(n_steps, hidden_dim=hidden, calibration="train")
        step, _ = watched(detector, X.astype(np.float32), n_steps)
        rows.append(cost_row(case, step, peer, floor, 1.5))
    return rows


# -- detectors on images -----------------------------------------------------------


def efficientad_networks(detector, module):
    """A function that runs the networks of a step, and gives one number."""
    import torch

    teacher = detector._normalized_teacher(torch.device("cpu"))
    b = detector.train_batch_size
    images = random_images(3 * b, detector)

    def forward():
        teacher(images[: 2 * b])
        restored = module["autoencoder"](images[b : 2 * b])
        return module["student"](images).mean() + restored.mean()

    return forward


def draem_networks(detector, module):
    from skad.networks import unet

    images = random_images(detector.train_batch_size, detector)
    return lambda: sum(maps.mean() for maps in unet.restore_and_compare(module, images))


def cutpaste_networks(detector, module):
    n_versions = module["head"][-1].out_features
    images = random_images(n_versions * detector.train_batch_size, detector)

    def forward():
        maps = module["backbone"].forward_features(images)
        return module["head"](maps.mean(dim=(2, 3))).mean()

    return forward


def prn_networks(detector, module):
    loss = detector._loss(module, None)
    images = random_images(detector.train_batch_size, detector)
    images = images.permute(0, 2, 3, 1).numpy()
    prototypes = [p[[0] * len(images)] for p in loss.prototypes]

    def forward():
        return module(loss.encoder.feature_maps(images.copy()), prototypes).mean()

    return forward


def random_images(n, detector):
    """A batch in the layout in which the networks take it."""
    import torch

    shape = n, 3, *detector._input_size()
    values = np.random.default_rng(0).random(shape, np.float32)
    return torch.from_numpy(values).contiguous(memory_format=torch.channels_last)


def cases(options, images, n_steps):
    """By name: a detector, and the function that gives a pass of its networks."""
    size = {"image_size": 64 if options.small else 128, "calibration": "train"}
    weights = {
        "backbone": "mobilenetv2_100",
        "weights": options.weights,
        "train_batch_size": 4 if options.small else 16,
        "max_steps": n_steps,
    }
    epochs = -(-n_steps // -(-len(images) // 8))
    efficientad = EfficientADDetector("tiny", random_teacher(), images, n_steps, **size)
    prn = PRNDetector(
        model="tiny", backbone_kwargs={"pad_type": "same"}, **weights, **size
    )
    return {
        "EfficientAD tiny, 1 image": (efficientad, efficientad_networks),
        "DRAEM tiny, 8 images": (
            DRAEMDetector("tiny", max_epochs=epochs, **size),
            draem_networks,
        ),
        "CutPaste, MobileNetV2, 16 images": (
            CutPasteDetector(**weights, **size),
            cutpaste_networks,
        ),
        "PRN tiny, MobileNetV2, 16 images": (prn, prn_networks),
    }


def random_teacher(n_channels=64):
    """A teacher of EfficientAD with random weights, which takes as long as any."""
    from skad.networks import modules, pdn

    network = modules.seeded(lambda: pdn.pdn("tiny", n_channels), 0)
    return Teacher("tiny", modules.arrays(network))


def on_images(options):
    images = photographs(options)[:N_IMAGES]
    n_steps = 4 if options.small else 40
    rows = []
    found = cases(options, images, n_steps)
    for case, (detector, networks_of) in found.items():
        step, floor = watched(detector, images, n_steps, networks_of)
        rows.append(cost_row(case, step, "networks alone", floor, 1.5))
    return rows


def main():
    options = parser(__doc__).parse_args()
    limit_threads(options.threads)
    rows = on_images(options) + simplenet(options)
    publish(
        options, "training", rows, ("case", "a step", "peer", "floor", "cost", "target")
    )


if __name__ == "__main__":
    main()

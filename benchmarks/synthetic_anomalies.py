"""DRAEM and CutPaste on two processor cores, trained on defects that they make.

    python benchmarks/synthetic_anomalies.py

Trains reduced configurations on the normal images, and scores the test images: "draem"
with generated textures, "cutpaste" from random weights, "cutpaste imagenet" from those
of `--weights`. `--method` chooses one of them.
"""

import time

import numpy as np
from harness import limit_threads, parser, publish, timing

from skad import CutPasteDetector, DRAEMDetector
from skad.datasets import load_mvtec
from skad.metrics import image_auroc, pixel_metrics


def draem(options):
    return DRAEMDetector(
        "tiny",
        max_epochs=1 if options.small else options.epochs,
        learning_rate=1e-3,
        image_size=options.image_size,
        verbose=True,
    )


def cutpaste(options, backbone="resnet18", weights=False, learning_rate=0.03):
    return CutPasteDetector(
        backbone=backbone,
        weights=weights,
        max_steps=10 if options.small else options.cutpaste_steps,
        learning_rate=learning_rate,
        train_batch_size=16,
        image_size=options.image_size,
        verbose=True,
    )


def cutpaste_imagenet(options):
    return cutpaste(options, "mobilenetv2_100", options.weights, learning_rate=3e-3)


METHODS = {
    "draem": draem,
    "cutpaste": cutpaste,
    "cutpaste imagenet": cutpaste_imagenet,
}


def measure(model, data, train):
    """Rows of the table of one method."""
    start = time.perf_counter()
    model.fit(train)
    trained = time.perf_counter()
    scores = model.score_samples(data.test)
    scored = time.perf_counter()
    metrics = pixel_metrics(data.masks, model.anomaly_map(data.test))
    decision = model.predict(data.test)
    normal = data.y_test == 1
    losses = np.array_split(model.loss_curve_, 10)
    return [
        ["image AUROC", f"{image_auroc(data.y_test, scores):.3f}"],
        ["pixel AUROC", f"{metrics['pixel_auroc']:.3f}"],
        ["PRO", f"{metrics['pro_score']:.3f}"],
        ["recall", f"{np.mean(decision[~normal] == -1):.3f}"],
        ["false alarms", f"{np.mean(decision[normal] == -1):.3f}"],
        ["training takes", timing(trained - start)],
        ["steps", len(model.loss_curve_)],
        ["scoring takes, per image", timing((scored - trained) / len(data.test))],
        ["loss, by tenths", " ".join(f"{part.mean():.3g}" for part in losses)],
    ]


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--method", choices=METHODS, help="all by default")
    arguments.add_argument("--category", default="mvtec_bottle_256")
    arguments.add_argument("--image-size", type=int, default=128)
    arguments.add_argument("--epochs", type=int, default=48, help="of DRAEM")
    arguments.add_argument("--cutpaste-steps", type=int, default=400)
    options = arguments.parse_args()
    if options.small:
        options.image_size = 64
    limit_threads(options.threads)
    data = load_mvtec(options.data, options.category)
    train = data.train[:30] if options.small else data.train
    for name in [options.method] if options.method else METHODS:
        rows = measure(METHODS[name](options), data, train)
        case = f"{name}, {options.category}, {options.image_size} px"
        publish(options, name, rows, (case, "measured"))


if __name__ == "__main__":
    main()

"""EfficientAD from nothing but photographs, by default "tiny" on two processor cores.

    python benchmarks/efficientad.py
    python benchmarks/efficientad.py --model small --teacher-steps 20000 --steps 70000

The second is for a CUDA device, which is used where there is one. Distils a teacher
from MobileNetV2 on photographs of many things (`natural` in the data folder), trains
on the normal images, and scores the test images. The teacher goes to `--teacher`, where
a second run finds it.
"""

import time
from pathlib import Path

import numpy as np
from harness import limit_threads, parser, publish, timing

from skad import EfficientADDetector, PatchFeatures
from skad.datasets import load_mvtec
from skad.detectors import Teacher, distill_teacher
from skad.metrics import image_auroc, pixel_metrics


def teacher(options, photographs):
    if options.teacher is not None and options.teacher.exists():
        return Teacher.load(options.teacher)
    features = PatchFeatures(
        "mobilenetv2_100",
        layers="auto",
        weights=options.weights,
        backbone_kwargs={"pad_type": "same"},
        embedding="concat",
        n_components=64 if options.model == "tiny" else None,
        image_size=2 * options.image_size,
        verbose=True,
    ).fit(photographs[:1])
    return distill_teacher(
        features,
        photographs,
        model=options.model,
        max_steps=10 if options.small else options.teacher_steps,
        image_size=options.image_size,
        learning_rate=options.teacher_rate,
        train_batch_size=8 if options.model == "tiny" else 16,
        path=options.teacher,
        verbose=True,
    )


def curve(losses, n=10):
    """A loss curve as means of n parts of it."""
    parts = np.array_split(losses, n) if len(losses) else []
    return " ".join(f"{part.mean():.3g}" for part in parts)


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--category", default="mvtec_bottle_256")
    arguments.add_argument("--model", default="tiny")
    arguments.add_argument("--image-size", type=int, default=256)
    arguments.add_argument("--teacher-steps", type=int, default=2000)
    arguments.add_argument("--teacher-rate", type=float, default=1e-3)
    arguments.add_argument("--steps", type=int, default=2000)
    arguments.add_argument("--rate", type=float, default=1e-3)
    arguments.add_argument("--teacher", type=Path)
    options = arguments.parse_args()
    limit_threads(options.threads)
    data = load_mvtec(options.data, options.category)
    photographs = sorted((options.data / "natural").glob("*.jpg"))
    if not photographs:
        raise SystemExit(f"there are no photographs in {options.data / 'natural'}.")
    train, test, labels = data.train, data.test, data.y_test
    if options.small:
        photographs, train, options.image_size = photographs[:20], train[:20], 64
    start = time.perf_counter()
    made = teacher(options, photographs)
    distilled = time.perf_counter()
    model = EfficientADDetector(
        options.model,
        made,
        photographs,
        max_steps=10 if options.small else options.steps,
        learning_rate=options.rate,
        image_size=options.image_size,
        verbose=True,
    ).fit(train)
    trained = time.perf_counter()
    scores = model.score_samples(test)
    scored = time.perf_counter()
    metrics = pixel_metrics(data.masks, model.anomaly_map(test))
    decision = model.predict(test)
    rows = [
        ["image AUROC", f"{image_auroc(labels, scores):.3f}"],
        ["pixel AUROC", f"{metrics['pixel_auroc']:.3f}"],
        ["PRO", f"{metrics['pro_score']:.3f}"],
        ["recall", f"{np.mean(decision[labels == -1] == -1):.3f}"],
        ["false alarms", f"{np.mean(decision[labels == 1] == -1):.3f}"],
        ["distillation takes", timing(distilled - start)],
        ["steps of the distillation", made.provenance.get("n_steps", "not known")],
        ["training takes", timing(trained - distilled)],
        ["steps of the training", len(model.loss_curve_)],
        ["scoring takes, per image", timing((scored - trained) / len(test))],
        ["loss of the distillation", curve(made.loss_curve) or "not known"],
        ["loss of the training", curve(model.loss_curve_)],
    ]
    case = f"EfficientAD {options.model}, {options.category}, {options.image_size} px"
    name = "efficientad" + (f" {options.model}" if options.model != "tiny" else "")
    publish(options, name, rows, (case, "measured"))


if __name__ == "__main__":
    main()

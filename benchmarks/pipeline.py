"""A whole decision, from image files to scores and maps, against the bare network.

    python benchmarks/pipeline.py

`Pipeline([PatchFeatures(), PatchCoreDetector()])` reads, resizes, extracts, searches
and draws; the bare network gets a ready batch and runs to its end. anomalib's model
gets the same batch and a bank of the same size. Ratios are costs: 1 is the network
alone. mobilenetv2_100 and skad_small have real weights; those of the others are random.
"""

import numpy as np
from features import BATCH, bare_network, repeated
from harness import (
    cost_row,
    limit_threads,
    network_of,
    optional,
    parser,
    publish,
    race,
)

from skad import PatchCoreDetector, PatchFeatures, Pipeline
from skad.datasets import load_mvtec

CASES = (
    # network, size, rows of the bank, cost of a decision, of a map
    ("wide_resnet50_2", 224, 10_000, 1.15, 1.25),
    ("resnet18", 224, 10_000, 1.3, None),
    ("mobilenetv2_100", 224, 10_000, None, None),
    ("skad_small", 224, 10_000, None, None),
    ("wide_resnet50_2", 256, 20_000, 1.3, None),
)


def fitted(options, name, size, n_rows, train):
    parameters = {"layers": ("layer2", "layer3"), "weights": False}
    if name == "skad_small":
        parameters = {"layers": "auto"}
    elif name == "mobilenetv2_100":
        parameters = {"layers": "auto", "weights": options.weights}
        parameters["backbone_kwargs"] = {"pad_type": "same"}
    features = PatchFeatures(name, image_size=size, **parameters)
    n_images = 2 * -(-n_rows // (size // 8) ** 2)
    patches = features.fit_transform(train[:n_images])
    share = n_rows / (patches.size // patches.shape[-1])
    detector = PatchCoreDetector(min(1.0, share), calibration="train").fit(patches)
    return Pipeline([features, detector])


def anomalib_model(name, size, bank):
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    layers = ("layer2", "layer3")
    model = PatchcoreModel(layers=layers, backbone=name, pre_trained=False).eval()
    d = {"resnet18": 384, "wide_resnet50_2": 1536}[name]
    # Its search takes the same time whatever the rows are.
    model.memory_bank = torch.from_numpy(np.resize(bank, (len(bank), d)))
    batch = torch.rand(BATCH, 3, size, size)

    def run():
        with torch.inference_mode():
            model(batch)

    return run


def compare(options, name, size, n_rows, decision, rendered, data):
    model = fitted(options, name, size, n_rows, data.train)
    files = data.test[:BATCH] if options.small else data.test[: 4 * BATCH]
    n = len(files) // BATCH
    if name == "skad_small":
        whole = network_of(model[0], np.zeros((BATCH, 3, size, size), np.float32))
    else:
        whole, _ = bare_network(name, model[0].layers_[-1], size)

    racers = {
        "decision_function": lambda: model.decision_function(files),
        "anomaly_map": lambda: model.anomaly_map(files),
        "bare network": repeated(whole, n),
    }
    if name in ("resnet18", "wide_resnet50_2") and optional("anomalib") is not None:
        racers["anomalib"] = repeated(anomalib_model(name, size, model[1].bank_), n)
    for _ in range(2):
        model.decision_function(files)  # the bank prepares more for a second call
    limit_threads(options.threads)
    seconds, _ = race(racers, options.rounds, patience=90)
    each = {racer: total / len(files) for racer, total in seconds.items()}
    bare = each["bare network"]
    case = f"{name}, {size} px, {len(model[1].bank_):,} rows"
    return [
        cost_row(f"{case}: {racer}", each[racer], "bare network", bare, limit)
        for racer, limit in (
            ("decision_function", decision),
            ("anomaly_map", rendered),
            ("anomalib", None),
        )
        if racer in each
    ]


def main():
    options = parser(__doc__).parse_args()
    data = load_mvtec(options.data, "mvtec_bottle_256")
    rows = []
    small = [("resnet18", 64, 100, None, None)]
    for case in small if options.small else CASES:
        rows += compare(options, *case, data)
    header = ("case", "per image", "peer", "per image ", "cost", "target")
    publish(options, "pipeline", rows, header)


if __name__ == "__main__":
    main()

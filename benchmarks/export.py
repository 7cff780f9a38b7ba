"""One image at a time: a fitted model, its graph, and anomalib's graph of PatchCore.

    python benchmarks/export.py

Raw images of 256 x 256 pixels go in, score and heat map come out. `skad` is the fitted
pipeline (`inspect`), "graph" the file of `to_onnx`, run by `OnnxDetector`. In the last
row, the network is resnet18 with random weights, and the bank has 2,000 rows of 384
channels. anomalib's `Patchcore` has the same; its graph gets images as float32, so that
it need not convert anything. "bare network" runs the pipeline's network in torch, on a
batch that lies ready. Where that graph takes no other batch than one of several
images, it gets as many, and its time is per image. The largest relative difference of
scores between skad and its graph is in the same table.
"""

import tempfile
from pathlib import Path

import numpy as np
from harness import limit_threads, network_of, optional, parser, publish, race, timing
from PIL import Image

import skad
from skad.datasets import load_mvtec
from skad.export import OnnxDetector, to_onnx

SIZE = 256  # side of a raw image, pixels
N_ROWS = 2000
LAYERS = ("layer2", "layer3")  # of resnet18
HEADER = ("model", "skad", "graph", "ratio", "bare network", "file")
HEADER += ("score difference", "anomalib")


def models(n_rows):
    small = skad.PatchFeatures("skad_small", layers="auto", image_size=224)
    large = skad.PatchFeatures(
        "resnet18", layers=LAYERS, embedding="concat", weights=False, image_size=224
    )
    patchcore = skad.PatchCoreDetector(bank_size=n_rows)
    return {
        "PatchCore, skad_small": (small, patchcore),
        "Subspace, skad_small": (small, skad.SubspaceDetector()),
        "PaDiM, skad_small, 50 channels": (
            skad.PatchFeatures(
                "skad_small", layers="auto", image_size=224, n_components=50
            ),
            skad.PaDiMDetector(),
        ),
        "PatchCore, resnet18": (large, patchcore),
    }


def pixels(paths):
    """Raw images (H, W, 3)."""
    return [
        np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE)))
        for path in paths
    ]


def anomalib_graph(folder, n_threads):
    """Runs anomalib's own export of PatchCore for an image; None without anomalib."""
    if optional("anomalib") is None:
        return None
    import onnxruntime
    import torch
    from anomalib.models import Patchcore

    model = Patchcore(
        backbone="resnet18", layers=LAYERS, pre_trained=False, post_processor=False
    )
    model.model.memory_bank = torch.rand(N_ROWS, 384)
    file = model.to_onnx(folder, input_size=(SIZE, SIZE))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    session = onnxruntime.InferenceSession(
        str(file), options, providers=["CPUExecutionProvider"]
    )
    taken = session.get_inputs()[0]
    n_batch = taken.shape[0] if isinstance(taken.shape[0], int) else 1
    print(f"anomalib's graph takes images (n, C, H, W) as {taken.shape}.", flush=True)

    def run(images):
        for lo in range(0, len(images) - n_batch + 1, n_batch):
            batch = np.stack(images[lo : lo + n_batch]) / np.float32(255)
            session.run(None, {taken.name: batch.transpose(0, 3, 1, 2)})

    return run


def main():
    options = parser(__doc__).parse_args()
    options.threads = 1
    limit_threads(options.threads)
    data = load_mvtec(options.data, "mvtec_bottle_256")
    n_train, n_test, n_rows = (4, 2, 200) if options.small else (100, 20, N_ROWS)
    train = pixels(data.train[:n_train])
    test = pixels(data.test[:: max(1, len(data.test) // n_test)][:n_test])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        peer = anomalib_graph(folder, options.threads)
        cases = list(models(n_rows).items())
        for name, steps in cases[:1] if options.small else cases:
            model = skad.make_pipeline(*steps).fit(train)
            file = Path(folder, "part.onnx")
            to_onnx(model, file, check=test)
            graph = OnnxDetector(file, n_threads=options.threads)
            network = network_of(model[0], np.zeros((1, 3, 224, 224), np.float32))
            racers = {
                "network": lambda network=network: [network() for _ in test],
                "skad": lambda model=model: [
                    next(skad.inspect(model, [image])).score for image in test
                ],
                "graph": lambda graph=graph: [
                    graph.answers([image], ("score", "map"))["score"][0]
                    for image in test
                ],
            }
            if peer is not None and "resnet18" in name:
                racers["anomalib"] = lambda: peer(test)
            seconds, found = race(racers, options.rounds)
            difference = np.abs(np.divide(found["graph"], found["skad"]) - 1).max()
            per_image = {key: value / len(test) for key, value in seconds.items()}
            rows.append(
                [
                    name,
                    timing(per_image["skad"]),
                    timing(per_image["graph"]),
                    f"{per_image['skad'] / per_image['graph']:.2f}",
                    timing(per_image["network"]),
                    f"{file.stat().st_size / 1e6:.1f} MB",
                    f"{difference:.0e}",
                    timing(per_image["anomalib"]) if "anomalib" in per_image else "",
                ]
            )
    publish(options, "export", rows, HEADER)


if __name__ == "__main__":
    main()

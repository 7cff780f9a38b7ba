"""EfficientAD's protocol for latency, for a table of `papers.py`."""

import platform
import statistics
import warnings

import numpy as np
from harness import timed
from sklearn.utils import Bunch

SIZE = 256  # pixels
CALLS_GPU, CALLS_CPU, CALLS_CPU_BATCH = 1000, 20, 3


def machine(options, row):
    """Where a row is measured and in what arithmetic, as the data set of the row."""
    import torch

    if uses_gpu(options):
        name = torch.cuda.get_device_name()
        kind = "float16" if takes_precision(row) else "float32"
        return Bunch(layout=f"{name}, {kind}", category="")
    threads = torch.get_num_threads()
    name = platform.processor() or platform.machine()
    layout = f"CPU ({name}, threads: {threads}), float32: not the paper's protocol"
    return Bunch(layout=layout, category="")


def uses_gpu(options):
    import torch

    return options.device.startswith("cuda") or (
        options.device == "auto" and torch.cuda.is_available()
    )


def takes_precision(row):
    """Whether the model of a row can compute in half precision."""
    from skad.presets import PRESETS

    preset = PRESETS[row.preset]
    return preset.features is not None or "precision" in preset.make().get_params()


def latency(options, table, row, data, seed):
    """Time calls from pixels in the memory of the host to maps in it."""
    on_gpu = uses_gpu(options)
    n_calls = CALLS_GPU if on_gpu else CALLS_CPU if row.batch == 1 else CALLS_CPU_BATCH
    size, batch = SIZE, row.batch
    if options.small:
        n_calls, size, batch = 1, 64, min(batch, 2)
    model = untrained(options, row, size, seed, half=on_gpu and takes_precision(row))
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    seconds = timed(lambda: model.anomaly_map(images), n_calls)
    middle = statistics.median(seconds)
    return {
        "n_train": 0,
        "n_test": n_calls,
        "latency_ms": 1e3 * middle,
        "worst_ms": 1e3 * float(np.quantile(seconds, 0.99)),
        "images_per_s": batch / middle,
    }


def untrained(options, row, size, seed, *, half):
    """The model of a row after one step on noise, as fast as a trained one."""
    from skad.presets import PRESETS

    preset = PRESETS[row.preset]
    own = {"calibration": "train", "batch_size": row.batch, "device": options.device}
    own |= {"max_steps": 1, "max_epochs": 1, **teacher(options, preset)}
    own |= {"precision": "float16"} if half else {}
    known = preset.detector().get_params()
    own = {name: value for name, value in own.items() if name in known}
    if preset.features is None:
        model = preset.make(random_state=seed, **own, image_size=size)
    else:
        features = {"weights": False, "image_size": size, "crop_size": None}
        features |= {"device": options.device, "batch_size": row.batch}
        features |= {"precision": "float16"} if half else {}
        model = preset.make(random_state=seed, patch_features=features, **own)
    noise = np.random.default_rng(seed).integers(0, 256, (8, size, size, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is missing for a good model
        return model.fit(noise)


def teacher(options, preset):
    """A teacher with random weights, for EfficientAD."""
    if "teacher" not in preset.needs:
        return {}
    from skad.detectors import Teacher
    from skad.networks import pdn

    model = "tiny" if options.small else preset.parameters["model"]
    state = pdn.pdn(model, 64 if options.small else 384).state_dict()
    weights = {name: value.numpy() for name, value in state.items()}
    return {"model": model, "teacher": Teacher(model, weights)}

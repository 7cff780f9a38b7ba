"""Small scratches in large images, in tiles and resized; many images, in parts.

    python benchmarks/large.py --part tiles
    python benchmarks/large.py --part many
    python benchmarks/large.py --part parallel

`large_many.py` and `large_parallel.py` describe the second and the third one. For the
first one, images of 4096 x 2048 pixels are mosaics of photographs of normal parts, each
cut out at random and turned. Those that are learned from and those that are tested are
mosaics of the same photographs: the question is whether a scratch is seen, not whether
the model knows other parts. Half of those tested have one scratch, 10 pixels wide and
100 long, lighter than dark ground or darker than light ground. Each way runs in a
process of its own; its memory is what it takes at most beside the network, which has
run once by then.
"""

import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import limit_threads, parser, publish, timing
from large_many import many, memory
from large_parallel import parallel
from PIL import Image, ImageDraw, ImageFilter

SETS = {"bottles": "mvtec_bottle_256", "magnetic tiles": "magnetic_tile"}
BLOCK = 256  # side of a photograph in a mosaic
SCRATCH = 10, 100  # width and length, pixels
CONTRAST = 50  # grey levels that a scratch is lighter or darker
CUT = 7 / 8  # of the sides of a photograph
PART = 10  # images that Subspace learns from at once
BANK_SIZE = 4096
DOCS = Path(__file__).resolve().parents[1] / "docs"
HEADER = ("images", "way", "AUROC", "found", "false alarms", "fit")
HEADER += ("score an image", "memory, MB")


def mosaic(photographs, size, rng):
    """An image (height, width) of parts of photographs, turned at random."""
    height, width = size
    result = Image.new(Image.open(photographs[0]).mode, (width, height))
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            photograph = Image.open(photographs[rng.integers(len(photographs))])
            sides = np.array(photograph.size)
            corner = rng.uniform(0, 1 - CUT, 2) * sides
            box = (*corner, *(corner + CUT * sides))
            block = photograph.resize((BLOCK, BLOCK), Image.Resampling.BILINEAR, box)
            block = block.transpose(Image.Transpose(int(rng.integers(7))))
            result.paste(block, (left, top))
    return result


def scratched(image, rng):
    """The image with one scratch, of a random place and direction."""
    width, length = SCRATCH
    angle = rng.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    centre = rng.uniform([length, length], np.array(image.size) - length)
    mask = Image.new("L", image.size)
    ends = [tuple(centre - reach), tuple(centre + reach)]
    ImageDraw.Draw(mask).line(ends, fill=255, width=width)
    share = np.asarray(mask.filter(ImageFilter.GaussianBlur(1)), np.float32) / 255
    pixels = np.asarray(image, np.float32)
    sign = 1 if pixels[share > 0].mean() < 128 else -1  # the scratch can be seen
    share = share if pixels.ndim == 2 else share[..., None]
    changed = np.clip(pixels + sign * CONTRAST * share, 0, 255)
    return Image.fromarray(changed.round().astype(np.uint8))


def write_images(folder, photographs, counts, size, rng):
    """Write mosaics to learn from, normal ones to test, and scratched ones."""
    paths = {}
    for kind, count in counts.items():
        paths[kind] = []
        for i in range(count):
            image = mosaic(photographs, size, rng)
            if kind == "scratched":
                image = scratched(image, rng)
            paths[kind].append(str(folder / f"{kind}_{i}.png"))
            image.save(paths[kind][-1], compress_level=1)
    return paths


def ways(options):
    """Ways to treat large images, by name."""
    sizes, overlaps = (224, 512), options.overlap
    if options.small:
        sizes, overlaps = sizes[:1], overlaps[-1:]
    found = {f"resized to {n} x {n}": {"resized": (n, n)} for n in sizes}
    for overlap in overlaps:
        found[f"tiles of 256, overlap {overlap}"] = {"tile": 256, "overlap": overlap}
    return found


def features_of(way):
    """The transformer of a way to treat large images."""
    from skad import PatchFeatures, TiledFeatures

    if "resized" in way:
        return PatchFeatures("skad_small", image_size=tuple(way["resized"]))
    features = PatchFeatures("skad_small", image_size=way["tile"])
    return TiledFeatures(features, overlap=way["overlap"])


def fitted(way, detector, paths):
    """A model of one way; what it holds in `fit` does not grow with the images."""
    from skad import PatchCoreDetector, Pipeline, SubspaceDetector

    if detector == "patchcore":
        bounded = PatchCoreDetector(bank_size=BANK_SIZE)
        return Pipeline([features_of(way), bounded]).fit(paths)
    model = Pipeline([features_of(way), SubspaceDetector()])
    for first in range(0, len(paths), PART):
        model.partial_fit(paths[first : first + PART])
    return model


def measure(way, detector, paths, n_threads):
    """Fit, score and print what came out, as JSON; runs in a process of its own."""
    from sklearn.metrics import roc_auc_score

    from skad import PatchFeatures

    limit_threads(n_threads)
    noise = np.random.default_rng(0).random((8, BLOCK, BLOCK, 3), np.float32)
    PatchFeatures("skad_small", image_size=BLOCK).fit_transform(noise)
    before = memory("VmRSS")
    start = time.perf_counter()
    model = fitted(way, detector, paths["train"])
    fit = time.perf_counter() - start
    tested = paths["normal"] + paths["scratched"]
    start = time.perf_counter()
    decisions = model.decision_function(tested)
    seconds = time.perf_counter() - start
    is_normal = np.arange(len(tested)) < len(paths["normal"])
    result = {
        "auroc": roc_auc_score(is_normal, decisions),
        "found": float(np.mean(decisions[~is_normal] < 0)),
        "false_alarms": float(np.mean(decisions[is_normal] < 0)),
        "fit": fit,
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
    for name, folder in list(SETS.items())[: 1 if options.small else None]:
        photographs = sorted((options.data / folder / "train" / "good").glob("*"))
        if not photographs:
            raise SystemExit(f"no photographs in {options.data / folder}; see --data.")
        with tempfile.TemporaryDirectory() as made:
            rng = np.random.default_rng(0)
            paths = write_images(Path(made), photographs, counts, size, rng)
            for label, way in ways(options).items():
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
    if options.write:
        with open(DOCS / "large.csv", "w", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])


PARTS = {"tiles": tiles, "many": many, "parallel": parallel}


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--part", choices=sorted(PARTS), nargs="+")
    arguments.add_argument("--images", type=int, default=100, help="to learn from")
    arguments.add_argument("--overlap", type=int, nargs="+", default=[0, 64])
    arguments.add_argument("--many", type=int, default=20_000, help="small images")
    arguments.add_argument(
        "--detector", choices=["patchcore", "subspace"], default="patchcore"
    )
    options = arguments.parse_args()
    for part in options.part or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()

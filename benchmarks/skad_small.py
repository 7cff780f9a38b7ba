r"""Make the backbone that ships with skad: distil MobileNetV2 into a small network.

    python benchmarks/skad_small.py --images DIR --weights FILE --out small.safetensors

On any folder of photographs, and on pictures that are rendered on the way: fractals,
noise, gratings and dead leaves. The small network has the same layers but for one
block. Each first learns by itself to turn what the large network has before that layer
into what it has after, as with the hints of FitNets (Romero et al., ICLR 2015). Then
all learn together to give what it has at strides 8 and 16, with fixed normalizations:
those of a few pictures at a time are noisy.

Every twentieth photograph is kept apart, to tell how much of the variance of the
large network's features the small one explains in pictures that it never saw; nothing
else is measured here, and no set of defects takes part. Two runs of one command on one
machine give the same bits, and a run that was killed goes on if `--checkpoints` names
a folder (its minutes count from there). If the file is there already, its log is shown.
"""

import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from harness import limit_threads, parser, photographs, publish, race, row
from PIL import Image, ImageDraw, ImageFilter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from skad import PatchFeatures, __version__
from skad.networks._frozen import named_backbone
from skad.networks._input import normalized
from skad.networks._modules import seeded
from skad.networks._sampling import combined_seed
from skad.networks._small import SkadSmall
from skad.networks._training import checkpoint_file, cosine, train
from skad.synthesis import perlin_noise

SIZES = ((128, 16), (160, 10), (224, 5))  # pixels of a side, and images of a step
SUFFIXES = (".jpg", ".jpeg", ".png")
STEPS = (2000, 22000)  # each layer by itself, and all together
EVERY = 1000  # steps, after which it is told how near the features are
DRAWN = 0.35  # share of pictures without a photograph


class Pictures:
    """Views of photographs, and rendered pictures, by seed."""

    def __init__(self, files):
        self.photographs = [Image.open(file).convert("RGB") for file in files]

    def draw(self, size, rng, *, plain=False):
        """One picture, uint8 (size, size, 3)."""
        if plain or rng.random() > DRAWN:
            picture = self._view(size, rng)
        else:
            picture = rendered(size, rng)
        if plain:
            return picture
        if rng.random() < 0.15:
            other = rendered(size, rng) if rng.random() < 0.5 else self._view(size, rng)
            share = rng.uniform(0.2, 0.8)
            if rng.random() < 0.5:
                noise = perlin_noise((size, size), tuple(rng.integers(1, 9, 2)), rng)
                share = share * (noise > rng.uniform(-0.2, 0.4))[..., None]
            picture = picture + share * (other.astype(np.float32) - picture)
        if rng.random() < 0.3:
            picture = marked(picture, rng)
        return exposed(picture, rng)

    def _view(self, size, rng):
        photograph = self.photographs[rng.integers(len(self.photographs))]
        limit = min(photograph.size)
        side = np.exp(rng.uniform(np.log(min(48, limit)), np.log(limit)))
        height = side * np.exp(rng.uniform(-0.2, 0.2))
        width, height = min(side, photograph.size[0]), min(height, photograph.size[1])
        x = rng.uniform(0, photograph.size[0] - width)
        y = rng.uniform(0, photograph.size[1] - height)
        box = (x, y, x + width, y + height)
        view = photograph.resize((size, size), Image.Resampling.BILINEAR, box=box)
        view = np.asarray(view)
        if rng.random() < 0.5:
            view = view[:, ::-1]
        if rng.random() < 0.2:
            view = view.transpose(1, 0, 2)
        return view


def rendered(size, rng):
    """A picture of nothing, float32 (size, size, 3) in [0, 255]."""
    kind = rng.integers(4)
    if kind == 3:
        return _leaves(size, rng)
    field = (_fractal, _noise, _grating)[kind](size, rng)
    if rng.random() < 0.3:
        other = (_fractal, _noise, _grating)[rng.integers(3)](size, rng)
        field = field + rng.uniform(0.1, 1) * other
    low, high = np.quantile(field, (0.01, 0.99))
    field = np.clip((field - low) / max(high - low, 1e-6), 0, 1)
    if rng.random() < 0.3:
        field = field ** np.exp(rng.uniform(-1, 1))
    # Colours along a line of three points, near each other or not.
    base, spread = rng.uniform(0, 255, 3), rng.uniform(5, 200)
    if rng.random() < 0.4:
        base[:] = base[0]
    colours = base + spread * rng.uniform(-1, 1, (3, 3 if rng.random() < 0.5 else 1))
    picture = [
        np.interp(field, (0, 0.5, 1), np.broadcast_to(colours, (3, 3))[:, c])
        for c in range(3)
    ]
    return np.clip(np.stack(picture, axis=-1), 0, 255).astype(np.float32)


def _fractal(size, rng):
    """Noise whose spectrum falls with a power of the frequency, stretched or not."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    if rng.random() < 0.4:
        angle, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(0, 3.5))
        fy, fx = (
            np.cos(angle) * fy + np.sin(angle) * fx,
            (np.cos(angle) * fx - np.sin(angle) * fy) * stretch,
        )
    frequency = np.maximum(np.hypot(fy, fx), 1 / size)
    shape = frequency.shape
    spectrum = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return np.fft.irfft2(spectrum * frequency ** -rng.uniform(0.4, 2.5), (size, size))


def _noise(size, rng):
    """Perlin noise in octaves, or ridges of it, or blobs."""
    cells = np.exp(rng.uniform(0, 3, 2))
    field = np.zeros((size, size))
    for octave in range(rng.integers(1, 5)):
        lattice = np.clip(cells * 2**octave, 1, size // 4).astype(int)
        field += perlin_noise((size, size), tuple(lattice), rng) / 2**octave
    kind = rng.integers(3)
    if kind == 1:
        return np.abs(field)
    if kind == 2:
        return 1 / (1 + np.exp(-field * rng.uniform(5, 60)))
    return field


def _grating(size, rng):
    """Waves in one or two directions, bent a little."""
    y, x = np.mgrid[:size, :size] / size
    bend = rng.uniform(0, 0.1) * perlin_noise((size, size), (2, 2), rng)
    field = np.zeros((size, size))
    for _ in range(rng.integers(1, 3)):
        angle, waves = rng.uniform(0, np.pi), np.exp(rng.uniform(0.5, 3.7))
        phase = np.cos(angle) * x + np.sin(angle) * y + bend
        wave = np.sin(2 * np.pi * (waves * phase + rng.random()))
        field = field * wave if rng.random() < 0.3 else field + wave
    return np.tanh(field * np.exp(rng.uniform(-1, 2)))


def _leaves(size, rng):
    """Shapes over shapes of every size: discs, boxes and polygons, shaded or not."""
    grey = rng.random() < 0.4
    centre, spread = rng.uniform(0, 255, 3), rng.uniform(10, 200)
    picture = Image.new("RGB", (size, size), _colour(centre, spread, grey, rng))
    pencil = ImageDraw.Draw(picture)
    for _ in range(int(np.exp(rng.uniform(1, 5.3)))):
        radius = min(2.5 / rng.random() ** 0.8, size / 2)
        x, y = rng.uniform(0, size, 2)
        fill, kind = _colour(centre, spread, grey, rng), rng.integers(3)
        if kind == 0:
            pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
            continue
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        if kind == 1:
            angles = rng.uniform(0, np.pi) + np.array([0.3, 2.8, 3.5, 6.0])
        points = [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles]
        pencil.polygon(points, fill)
    picture = np.asarray(picture, np.float32)
    if rng.random() < 0.6:
        shade = _fractal(size, rng)
        shade /= max(np.abs(shade).max(), 1e-6)
        picture = picture * (1 + rng.uniform(0, 0.5) * shade[..., None])
    return np.clip(picture, 0, 255).astype(np.float32)


def _colour(centre, spread, grey, rng):
    colour = centre + spread * rng.uniform(-1, 1, 3)
    colour = np.clip(colour[[0, 0, 0]] if grey else colour, 0, 255)
    return tuple(int(c) for c in colour)


def marked(picture, rng):
    """With a few strokes, dots or stains on it."""
    size = len(picture)
    mask = Image.new("L", (size, size))
    pencil = ImageDraw.Draw(mask)
    for _ in range(rng.integers(1, 5)):
        x, y = rng.uniform(0, size, 2)
        if rng.random() < 0.5:
            steps = np.cumsum(rng.normal(0, size / 12, (rng.integers(1, 6), 2)), axis=0)
            points = [(x, y), *[(x + dx, y + dy) for dx, dy in steps]]
            pencil.line(points, fill=255, width=int(rng.integers(1, 5)))
        else:
            a, b = np.exp(rng.uniform(0, 3, 2))
            pencil.ellipse((x - a, y - b, x + a, y + b), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    opacity = np.asarray(mask, np.float32)[..., None] / 255 * rng.uniform(0.15, 1)
    colour = rng.uniform(0, 255, 3 if rng.random() < 0.5 else 1).astype(np.float32)
    return picture + opacity * (colour - picture)


def exposed(picture, rng):
    """In other light: contrast, brightness, tint, grey, blur, noise. uint8."""
    picture = np.asarray(picture, np.float32)
    if rng.random() < 0.3:
        picture = picture @ np.float32([0.299, 0.587, 0.114])
        picture = np.repeat(picture[..., None], 3, axis=-1)
    if rng.random() < 0.7:
        mean = picture.mean()
        gain, offset = np.exp(rng.uniform(-1.6, 0.5)), rng.uniform(-40, 40)
        tint = rng.normal(0, 0.06, 3) if rng.random() < 0.4 else np.zeros(3)
        picture = (picture - mean) * gain + mean + offset
        picture = picture * (1 + tint.astype(np.float32))
    if rng.random() < 0.15:
        strength = rng.uniform(0.5, 8)
        picture = picture + rng.standard_normal(picture.shape, np.float32) * strength
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.4, 2))
        picture = np.asarray(Image.fromarray(picture).filter(blur))
    if rng.random() < 0.15:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "jpeg", quality=int(rng.integers(30, 90)))
        picture = np.asarray(Image.open(file))
    return picture


class Log(list):
    """Rows that a checkpoint keeps."""

    def state_dict(self):
        """All of them."""
        return {"rows": list(self)}

    def load_state_dict(self, state):
        """In their place."""
        self[:] = state["rows"]


class Large:
    """What the large network has before and after each of its layers."""

    def __init__(self, weights):
        backbone = named_backbone(
            "mobilenetv2_100", weights, {"pad_type": "same"}, 0, "cpu"
        )
        self.sha256 = backbone.sha256
        self.module = backbone.module

    def __call__(self, batch):
        """Pairs of what is before and after each part, and the maps of both levels."""
        whole, (first, second, *stages) = self.module, self.module.blocks[:5]
        levels = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            pairs = through(
                batch,
                (whole.conv_stem, whole.bn1),
                (first[0].conv_dw, first[0].bn1),
                (first[0].conv_pw, first[0].bn2),
            )
            before = pairs[-1][1]
            x = second[0](before)
            pairs.append((before, x))
            for stage in (second[1:], *stages):
                for block in stage:
                    added = through(
                        x,
                        (block.conv_pw, block.bn1),
                        (block.conv_dw, block.bn2),
                        (block.conv_pwl, block.bn3),
                    )
                    pairs += added
                    x = x + added[-1][1] if block.has_skip else added[-1][1]
                levels.append(x)
        _, level2, _, level3 = levels
        return pairs, [level2, level3]


def through(x, *layers):
    """Pairs of what is before and after each layer, a convolution and its norm."""
    pairs = []
    for convolution, norm in layers:
        pairs.append((x, norm(convolution(x))))
        x = pairs[-1][1]
    return pairs


def as_input(pictures):
    """Pictures uint8 (b, h, w, 3) as networks take them."""
    return normalized(np.ascontiguousarray(pictures).astype(np.float32) / 255)


def parts_of(module):
    """What imitates a layer of the large network each, but `layer0` a whole block."""
    blocks = *module.layer1, *module.layer2, *module.layer3
    layers = [layer for block in blocks for layer in block.body]
    return [*module.stem, module.layer0, *layers]


def standard_deviation(maps):
    """Of each channel (c, 1, 1)."""
    return maps.float().std(dim=(0, 2, 3)).clamp(min=1e-2)[:, None, None]


def prepared(module, pairs):
    """Let the last norm of each part give mean and standard deviation of its target.

    ReLU6 after it, where there is one, changes them. Standard deviations come back.
    """
    scales = [standard_deviation(after) for _, after in pairs]
    parts = parts_of(module)
    for part, (_, after), scale in zip(parts, pairs, scales, strict=True):
        norm = [m for m in part.modules() if isinstance(m, nn.BatchNorm2d)][-1]
        with torch.no_grad():
            norm.weight.copy_(scale.flatten())
            norm.bias.copy_(after.float().mean(dim=(0, 2, 3)))
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.01  # the pictures of one step are few
    return scales


def loss_of(given, wanted, scales):
    """Squared error; that of dull pictures counts as much as that of others."""
    total = 0
    for g, w, scale in zip(given, wanted, scales, strict=True):
        w = w.float() / scale
        varies = (w - w.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3))
        error = (g / scale - w).square().mean(dim=(1, 2, 3))
        total = total + (error / (varies + 0.1)).mean()
    return total / len(given)


def explained(module, held_out, scales):
    """Share of the variance within pictures that the network explains, by level."""
    module.eval()
    errors, varies = np.zeros(2), np.zeros(2)
    for batch, wanted in held_out:
        with torch.no_grad():
            given = module.levels(batch)
        for level, (g, w, scale) in enumerate(zip(given, wanted, scales, strict=True)):
            w = w.float()
            centred = w - w.mean(dim=(2, 3), keepdim=True)
            errors[level] += float(((g - w) / scale).square().mean())
            varies[level] += float((centred / scale).square().mean())
    return [float(share) for share in 1 - errors / varies]


def learning_rate(number, n_apart, n_steps):
    """Share of the largest one: along a cosine, twice, the second time from a fifth."""
    largest = 1.0
    if number >= n_apart:
        number, n_apart, largest = number - n_apart, n_steps - n_apart, 0.2
    return largest * min(1, number / 100) * cosine(number, n_apart)


def distilled(options):
    """Train, and write the file with what it says of its origin."""
    images = options.images or options.data / "natural"
    files = sorted(f for f in images.rglob("*") if f.suffix.lower() in SUFFIXES)
    if len(files) < 40:
        raise SystemExit(f"--images {images} holds {len(files)} images; pass more.")
    steps = [3, 3] if options.small else list(options.steps)
    n_apart, n_steps = np.cumsum(steps).tolist()
    seed = options.seed

    pictures = Pictures([f for i, f in enumerate(files) if i % 20])
    kept_apart = Pictures(files[::20])
    large = Large(options.weights)
    rng, n_sample = np.random.default_rng(combined_seed(seed, 4)), 64
    if options.small:
        n_sample = 8
    sample = as_input(np.stack([pictures.draw(224, rng) for _ in range(n_sample)]))
    pairs, levels = large(sample)
    module = seeded(SkadSmall, seed).to(memory_format=torch.channels_last)
    scales = prepared(module, pairs)
    level_scales = [standard_deviation(level) for level in levels]
    parts = parts_of(module)
    rng, held_out = np.random.default_rng(combined_seed(seed, 3)), []
    for _ in range(2 if options.small else 10):
        batch = [kept_apart.draw(224, rng, plain=True) for _ in range(10)]
        batch = as_input(np.stack(batch))
        held_out.append((batch, large(batch)[1]))
    optimizer = torch.optim.AdamW(
        module.parameters(), options.learning_rate, weight_decay=0.0
    )

    def clip(*_):  # torch takes what a hook returns for new arguments of the step
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)

    optimizer.register_step_pre_hook(clip)
    log = Log()

    def loss_of_step(number):
        if number % EVERY == 0:
            log.append([number, *explained(module, held_out, level_scales)])
            print(*log[-1], flush=True)
        size, n_images = SIZES[number % len(SIZES)]
        rngs = [
            np.random.default_rng(combined_seed(seed, 2, number, i))
            for i in range(n_images)
        ]
        batch = np.stack(list(pool.map(partial(pictures.draw, size), rngs)))
        batch = as_input(batch)
        pairs, levels = large(batch)
        module.train(number < n_apart)
        if number < n_apart:
            given = [part(x.float()) for part, (x, _) in zip(parts, pairs, strict=True)]
            loss = loss_of(given, [after for _, after in pairs], scales)
        else:
            loss = loss_of(module.levels(batch), levels, level_scales)
        return loss

    names = [file.name for file in files]
    settings = (steps, options.learning_rate, seed, names, large.sha256)
    start = time.perf_counter()
    with ThreadPoolExecutor(options.threads) as pool:
        losses = train(
            loss_of_step,
            module,
            optimizer,
            n_steps,
            rate=lambda number: learning_rate(number, n_apart, n_steps),
            parts={"log": log},
            label="skad_small",
            checkpoint=checkpoint_file(options.checkpoints, "skad_small", *settings),
            advice="--checkpoints FOLDER goes on.",
        )
    if len(losses) < n_steps:
        raise SystemExit(f"No file was written after {len(losses)} of {n_steps} steps.")
    minutes = (time.perf_counter() - start) / 60
    log.append([len(losses), *explained(module, held_out, level_scales)])
    provenance = {
        "skad": __version__,
        "imitates": "mobilenetv2_100 of timm, ImageNet weights, strides 8 and 16",
        "sha256_of_its_weights": large.sha256,
        "images": f"{len(pictures.photographs)} photographs of {images.name}, drawings",
        "steps": steps,
        "images_per_step": dict(SIZES),
        "learning_rate": options.learning_rate,
        "seed": seed,
        "minutes": round(minutes, 1),
        "mean_loss_of_the_last_1000_steps": round(float(np.mean(losses[-1000:])), 4),
        "log": [[n, *(round(f, 4) for f in shares)] for n, *shares in log],
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in module.state_dict().items()
    }
    save_file(state, str(options.out), {"provenance": json.dumps(provenance)})


def speed(options):
    """Time of an image through the small network and through the large one."""
    files = photographs(options)[: 8 if options.small else 64]
    images = [Image.open(file).convert("RGB").resize((224, 224)) for file in files]
    images = list(map(np.asarray, images))
    contestants = {
        "skad": PatchFeatures("skad_small", weights=options.out, embedding="concat"),
        "mobilenetv2_100": PatchFeatures(
            "mobilenetv2_100",
            layers="auto",
            weights=options.weights,
            backbone_kwargs={"pad_type": "same"},
            embedding="concat",
        ),
    }
    for features in contestants.values():
        features.fit(images)
    runs = {
        name: partial(features.transform, images)
        for name, features in contestants.items()
    }
    seconds, _ = race(runs, options.rounds)
    ours, peer = (value / len(images) for value in seconds.values())
    return row("image to features, 224 px", ours, "mobilenetv2_100", peer, 1)


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=Path, help="folder of photographs")
    arguments.add_argument("--out", type=Path, default=Path("skad_small.safetensors"))
    arguments.add_argument("--steps", type=int, nargs=2, default=STEPS)
    arguments.add_argument("--learning-rate", type=float, default=1e-2)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--checkpoints", type=Path, help="folder")
    options = arguments.parse_args()
    limit_threads(options.threads)
    if options.small:  # never taken for a trained one
        options.out = options.out.with_stem(options.out.stem + "_untrained")
    if not options.out.exists():
        distilled(options)
    publish(options, "skad_small speed", [speed(options)])
    with safe_open(str(options.out), "pt") as opened:
        log = json.loads(opened.metadata()["provenance"])["log"]
    rows = [[n, *(f"{f:.3f}" for f in shares)] for n, *shares in log]
    publish(options, "skad_small", rows, ("steps", "stride 8", "stride 16"))


if __name__ == "__main__":
    main()

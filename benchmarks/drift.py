"""False alarms of DriftMonitor, and after how many images it notices a change.

    python benchmarks/drift.py --write

Magnetic tiles of `--data`, PatchCore with a bank of 1 % on features of `skad_small`.
Each split takes n tiles at random to learn from; streams are sampled with replacement
from all others. Calibration scores are either the held-out scores of the tiles learned
from, or scores of as many others, which are then not in the streams.
"""

import warnings

import numpy as np
from harness import limit_threads, parser, publish
from PIL import Image, ImageFilter

from skad import PatchCoreDetector, PatchFeatures
from skad.base._threshold import conformal_p_values
from skad.datasets import load_mvtec
from skad.monitoring import DriftMonitor

SIZE, RATE, BEFORE, AT_MOST, DEFECTS = 112, 0.01, 500, 10_000, 0.05
ALARMS_HEADER = ("calibration", "tiles", "streams", "mean p", "with a false alarm")
DELAYS_HEADER = ("change", "tiles", "streams", "noticed", "first quartile", "median")
DELAYS_HEADER += ("third quartile", "mean score, in standard deviations")


def darker(image):
    return np.round(0.9 * image).astype(np.uint8)


def blurred(image):
    filtered = Image.fromarray(image).filter(ImageFilter.GaussianBlur(1))
    return np.asarray(filtered)


def shifted(image):
    """Two pixels to the right; the first column is repeated."""
    return np.pad(image, ((0, 0), (2, 0), (0, 0)), mode="edge")[:, :-2]


CHANGES = {
    "brightness x 0.9": darker,
    "blur of 1 px": blurred,
    "shift by 2 px": shifted,
}
MORE_DEFECTS = "5 % more defects"


def images_of(options):
    """Normal tiles and defects, uint8."""
    data = load_mvtec(options.data, "magnetic_tile")
    test = [data.test[i] for i in np.flatnonzero(data.y_test == 1)]
    bad = [data.test[i] for i in np.flatnonzero(data.y_test == -1)]
    return [
        [np.asarray(Image.open(path).convert("RGB")) for path in paths]
        for paths in ([*data.train, *test], bad)
    ]


def scores_of(order, n, patches, defects, split):
    """Held-out scores of n tiles, and scores of all others by what was done to them."""
    model = PatchCoreDetector(0.01, random_state=split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images
        model.fit(patches["none"][order[:n]])
    scores = {
        name: model.score_samples(some[order[n:]]) for name, some in patches.items()
    }
    return model.calibration_scores_, scores, model.score_samples(defects)


def false_alarm(calibration, pool, length, rng):
    monitor = DriftMonitor(calibration, false_alarm=RATE, random_state=rng)
    return monitor.update(rng.choice(pool, length)).alarm_


def delay(calibration, pool, changed, length, rng):
    """Images after the change until the alarm; NaN where it came before the change."""
    monitor = DriftMonitor(calibration, false_alarm=RATE, random_state=rng)
    if monitor.update(rng.choice(pool, BEFORE)).alarm_:
        return np.nan
    for _ in range(0, length, 1000):
        if monitor.update(changed(1000, rng)).alarm_:
            return monitor.alarm_index_ - BEFORE + 1
    return np.inf


def streams_of(scores, defects):
    """By name: how to sample a stream after a change."""
    pool = scores["none"]

    def with_defects(n, rng):
        normal, bad = rng.choice(pool, n), rng.choice(defects, n)
        return np.where(rng.random_sample(n) < DEFECTS, bad, normal)

    streams = {
        name: lambda n, rng, some=scores[name]: rng.choice(some, n) for name in CHANGES
    }
    return {**streams, MORE_DEFECTS: with_defects}


def standardised_shift(name, scores, defects):
    """How far the mean score moves, in standard deviations of normal scores."""
    pool = scores["none"]
    if name == MORE_DEFECTS:
        return DEFECTS * (defects.mean() - pool.mean()) / pool.std()
    return (scores[name].mean() - pool.mean()) / pool.std()


def measured(options, patches, defects, sizes, n_splits, n_alarms, n_delays, length):
    """Rows of both tables; streams of a split share a model."""
    alarms = {(kind, n): [] for n in sizes for kind in ("held out", "other tiles")}
    mean_p = {key: [] for key in alarms}
    delays = {(name, n): [] for name in (*CHANGES, MORE_DEFECTS) for n in sizes}
    moves = {key: [] for key in delays}
    for split in range(n_splits):
        rng = np.random.RandomState(split)
        for n in sizes:
            order = rng.permutation(len(patches["none"]))
            held_out, scores, bad = scores_of(order, n, patches, defects, split)
            pool = scores["none"]
            few = min(n, len(pool) // 2)
            for kind, calibration, others in (
                ("held out", held_out, pool),
                ("other tiles", pool[:few], pool[few:]),
            ):
                p = conformal_p_values(others, calibration)
                mean_p[kind, n].append(p.mean())
                for _ in range(n_alarms // n_splits):
                    found = false_alarm(calibration, others, length, rng)
                    alarms[kind, n].append(found)
            for name, changed in streams_of(scores, bad).items():
                move = standardised_shift(name, scores, bad)
                moves[name, n].append(move)
                for _ in range(n_delays // n_splits):
                    images = delay(held_out, pool, changed, length, rng)
                    delays[name, n].append(images)
        print(f"split {split} is done", flush=True)
    alarm_rows = [
        (*key, len(found), f"{np.mean(mean_p[key]):.3f}", f"{np.mean(found):.1%}")
        for key, found in alarms.items()
    ]
    return alarm_rows, [_delay_row(key, delays[key], moves[key]) for key in delays]


def _delay_row(key, images, moves):
    images = np.asarray(images)
    images = images[~np.isnan(images)]
    quartiles = np.quantile(images, [0.25, 0.5, 0.75], method="higher")
    shown = [f"{x:.0f}" if np.isfinite(x) else "never" for x in quartiles]
    noticed = f"{np.isfinite(images).mean():.0%}"
    return *key, len(images), noticed, *shown, f"{np.mean(moves):+.2f}"


def main():
    options = parser(__doc__).parse_args()
    limit_threads(options.threads)
    sizes, runs, length = (30, 100, 500), (20, 400, 200), AT_MOST
    if options.small:
        sizes, runs, length = (10,), (1, 2, 4), 1000
    normal, bad = images_of(options)
    features = PatchFeatures("skad_small", embedding="concat", image_size=SIZE)
    patches = {"none": features.fit_transform(normal)}
    for name, change in CHANGES.items():
        patches[name] = features.transform([change(image) for image in normal])
    defects = features.transform(bad)
    print("features are done", flush=True)
    found = measured(options, patches, defects, sizes, *runs, length)
    publish(options, "drift: false alarms", found[0], ALARMS_HEADER)
    publish(options, "drift: delays", found[1], DELAYS_HEADER)


if __name__ == "__main__":
    main()

"""Models of the presets for a table of `papers.py`, and what is measured of them."""

import math
import time

from papers_data import CROP, parts

FEW_STEPS = {"max_steps": 1, "max_epochs": 1, "train_batch_size": 4}


def given(options):
    """Images and weights that were passed, as parameters of the detector."""
    values = {
        "teacher": options.teacher,
        "penalty_images": options.penalty_images,
        "texture_images": options.textures,
    }
    return {name: path for name, path in values.items() if path is not None}


def accuracy(options, table, row, data, seed):
    """Fit a model on a category, and compute the metrics of its test images."""
    from skad.metrics import image_auroc, image_average_precision, image_f1_max
    from skad.presets import PRESETS

    preset = PRESETS[row.preset]
    found = parts(table, row, preset, data, seed)
    model = build(options, row, preset, seed, cropped=found.cropped)
    start = time.perf_counter()
    if found.y is None:
        model.fit(found.train)
    else:
        model.fit(found.train, found.y, found.masks)
    fit_s = time.perf_counter() - start
    answer = model.score_samples if found.test_masks is None else model.anomaly_map
    start = time.perf_counter()
    maps = answer(found.test)
    image_s = (time.perf_counter() - start) / len(found.test)
    scores = maps if found.test_masks is None else model.score_samples(found.test)
    return {
        "n_train": len(found.train),
        "n_test": len(found.test),
        "image_auroc": image_auroc(found.y_test, scores),
        "image_ap": image_average_precision(found.y_test, scores),
        "image_f1": image_f1_max(found.y_test, scores),
        **pixels(found.test_masks, maps),
        "fit_s": fit_s,
        "image_ms": 1e3 * image_s,
    }


def pixels(masks, maps):
    """Pixel metrics; NaN where the data set has no masks."""
    from skad.metrics import pixel_metrics

    names = {
        "pixel_auroc": "pixel_auroc",
        "pro": "pro_score",
        "pixel_ap": "pixel_average_precision",
        "pixel_f1": "pixel_f1_max",
    }
    if masks is None:
        return dict.fromkeys(names, math.nan)
    found = pixel_metrics(masks, maps)
    return {name: found[theirs] for name, theirs in names.items()}


def build(options, row, preset, seed, *, cropped):
    """The model of a row; images that were cropped before need no other crop."""
    own = {k: v for k, v in given(options).items() if k in preset.needs}
    if "teacher" in own:
        own["teacher"] = str(own["teacher"]).format(**preset.parameters)
    own |= row.parameters
    if preset.features is None:
        own |= {"device": options.device} | (small(preset) if options.small else {})
        return preset.make(random_state=seed, **own)
    features = {"device": options.device, **row.features}
    if cropped:
        features |= {"image_size": CROP, "crop_size": None}
    # Thresholds are not looked at: no scores are held out for them.
    own["calibration"] = "train"
    if options.small:
        features |= small_features(preset)
        own |= small(preset)
    return preset.make(random_state=seed, patch_features=features, **own)


def small(preset):
    """Few steps and small networks, whatever the preset says."""
    from skad import PatchFeatures

    changes = {"model": "tiny", **FEW_STEPS}
    if preset.features is None:
        changes |= {"image_size": 64, "weights": False}
    if preset.detector.__name__ == "EfficientADDetector":
        features = PatchFeatures("skad_small", n_components=64, image_size=128)
        changes |= {"teacher": "distill", "features": features}
    return known(changes, preset.detector)


def small_features(preset):
    """Untrained networks, small images, and few steps where features are trained."""
    changes = {"weights": False, "image_size": 56, "crop_size": None}
    if "giant" in preset.features["backbone"]:
        changes["backbone"] = "vit_small_patch14_reg4_dinov2"
        changes["layers"] = ("blocks.8", "blocks.9")
    return changes | known(FEW_STEPS, preset.transformer)


def known(settings, estimator):
    """Those of the settings that an estimator has."""
    return {k: v for k, v in settings.items() if k in estimator().get_params()}

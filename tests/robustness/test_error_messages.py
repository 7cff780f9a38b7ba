"""Errors name the argument, and the position in it, that the user passed."""

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate

from skad import (
    EfficientADDetector,
    FusedFeatures,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    SPDPatchFeatures,
)
from skad.base import ImageDetector
from skad.features import SkippedImageWarning
from skad.images import ImageError, read_image
from skad.images._batches import NamedImages
from skad.images._read import PILLOW_LIMIT
from skad.metrics import (
    PixelScorer,
    aupimo_score,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    pixel_metrics,
    pro_score,
    spro_score,
)
from skad.synthesis import SyntheticAnomalies

SIDE = 64
METRICS = [
    *(aupimo_score, pixel_auroc, pixel_average_precision, pixel_f1_max),
    *(pixel_metrics, pro_score, spro_score),
]


def small(**parameters):
    return PatchFeatures(
        "skad_small", embedding="concat", image_size=SIDE, **parameters
    )


def spd(**parameters):
    return SPDPatchFeatures(
        "skad_small",
        embedding="concat",
        image_size=SIDE,
        max_steps=1,
        train_batch_size=2,
        **parameters,
    )


def filters(**parameters):
    return PCANetFeatures(SIDE, n_filters=(8, 12, 12), **parameters)


def fused(**parameters):
    return FusedFeatures(small(**parameters), filters(**parameters))


class Brightness(ImageDetector):
    """The least that an image detector can be."""

    def __init__(
        self,
        image_size=SIDE,
        crop_size=None,
        batch_size=4,
        on_error="raise",
        n_jobs=1,
        contamination=0.1,
        calibration="split",
        sigma=0.0,
        random_state=0,
        verbose=False,
    ):
        self.image_size = image_size
        self.crop_size = crop_size
        self.batch_size = batch_size
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.contamination = contamination
        self.calibration = calibration
        self.sigma = sigma
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, reader):
        self.mean_ = float(np.mean([b.mean() for b in reader.batches(4)]))

    def _score_batch(self, batch):
        maps = np.abs(batch[:, ::8, ::8].mean(axis=3) - self.mean_)
        return maps.mean(axis=(1, 2)).astype(float), maps.astype(np.float32)


def images(n=14, bad=(3,)):
    rng = np.random.default_rng(0)
    X = list(rng.integers(0, 256, (n, 16, 16, 3), np.uint8))
    for i in bad:
        X[i] = "missing.png"
    return X


# Two anomalous images stand before the one that cannot be read.
Y = np.array([-1, -1, *[1] * 12])


# Positions in X ---------------------------------------------------------------

TRANSFORMERS = {
    "PCANet": filters,
    "SPD": spd,
    "Fused": fused,
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers_name_the_place_in_x(kind):
    with pytest.raises(ImageError, match=r"^X\[3\]") as caught:
        TRANSFORMERS[kind]().fit(images(), Y)
    assert caught.value.where == "X[3]"


def test_pipelines_name_the_place_in_x():
    X = images()
    for detector in (PatchCoreDetector(), PaDiMDetector()):
        model = Pipeline([small(), detector])
        with pytest.raises(ImageError, match=r"^X\[3\]"):
            model.fit(X, Y)
        model.fit([x for x in X if not isinstance(x, str)])
        for call in (model.partial_fit, model.calibrate):
            with pytest.raises(ImageError, match=r"^X\[3\]"):
                call(X, Y)


@pytest.mark.filterwarnings("ignore:.*held-out")
def test_what_was_skipped_is_named_by_its_place_in_x():
    X = images(bad=(3, 7))
    for features in (small(on_error="skip"), filters(on_error="skip")):
        with pytest.warns(SkippedImageWarning, match=r"X\[3\].*X\[7\]"):
            features.fit_transform(X, Y)
        assert [i for i, _ in features.skipped_] == [3, 7]
    model = Pipeline([small(on_error="skip"), PaDiMDetector()])
    with pytest.warns(SkippedImageWarning, match=r"2 of 12 .*X\[3\].*X\[7\]"):
        model.fit(X, Y)
    assert [i for i, _ in model[0].skipped_] == [3, 7]


@pytest.mark.parametrize("calibration", ["split", "kfold", "train"])
@pytest.mark.filterwarnings("ignore:.*held-out")
def test_image_detectors_name_the_place_in_x(calibration):
    X = images()
    with pytest.raises(ImageError, match=r"^X\[3\]"):
        Brightness(calibration=calibration).fit(X, Y)
    skipping = Brightness(calibration=calibration, on_error="skip")
    with pytest.warns(SkippedImageWarning, match=r"1 of 12 .*X\[3\]"):
        skipping.fit(X, Y)
    fitted = Brightness().fit([x for x in X if not isinstance(x, str)])
    for call in (lambda: fitted.calibrate(X, Y), lambda: fitted.predict(X)):
        with pytest.raises(ImageError, match=r"^X\[3\]"):
            call()


def test_images_of_several_arguments_keep_their_names():
    both = NamedImages(["missing.png", "gone.png"], ["X[3]", "penalty_images[0]"])
    with pytest.raises(ImageError, match=r"^X\[3\] \('missing.png'\)"):
        filters().fit(both)


def test_a_teacher_names_images_of_both_arguments():
    good = images(bad=())
    for X, others, message in (
        (images(), good[:2], r"^X\[3\]"),
        (good, [good[0], "missing.png"], r"^penalty_images\[1\]"),
    ):
        detector = EfficientADDetector(
            "tiny",
            "distill",
            others,
            features=filters(),
            image_size=SIDE,
            calibration="train",
        )
        with pytest.raises(ImageError, match=message):
            detector.fit(X, Y)


def test_sources_of_synthetic_anomalies_are_named():
    X = images()
    made = SyntheticAnomalies("homologous").fit(X, Y)
    good = [x for x in X if not isinstance(x, str)]
    with pytest.raises(ImageError, match=r"^X\[3\] of fit"):
        made.make(good * 5)
    textures = [np.zeros((9, 9, 3)), "missing.png"]
    made = SyntheticAnomalies("perlin", texture_images=textures).fit(good)
    with pytest.raises(ImageError, match=r"^texture_images\[1\]"):
        made.make(good)
    with pytest.raises(ValueError, match="masks has 1 entries, but defects 2"):
        SyntheticAnomalies("extended", defects=textures, masks=[None]).fit(good)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("texture_images", lambda v: ("DRAEMDetector", {"texture_images": v})),
        ("texture_images", lambda v: ("PRNDetector", {"texture_images": v})),
        ("penalty_images", lambda v: ("EfficientADDetector", {"penalty_images": v})),
    ],
)
def test_side_images_are_named(name, make):
    import skad

    for value, message in (
        ([], f"^{name} is empty"),
        (3, f"^{name} is of type int"),
        (["missing.png"], rf"^{name}\[0\] \('missing.png'\)"),
        ([np.zeros((2, 2)), 7], rf"^{name}\[1\]: an int is no image"),
    ):
        class_name, parameters = make(value)
        detector = getattr(skad, class_name)(image_size=SIDE, **parameters)
        with pytest.raises((ValueError, TypeError), match=message):
            detector._side_reader(name, (SIDE, SIDE)).read(0)


# Masks and maps ---------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_masks_and_maps_are_named_by_their_place(metric, tmp_path):
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = True
    maps = [np.random.default_rng(0).random((4, 5)) for _ in range(3)]
    Image.fromarray(mask.T.astype(np.uint8)).save(tmp_path / "turned.png")
    holes = [*maps[:2], np.full((4, 5), np.nan)]
    np.save(tmp_path / "nan.npy", holes[2])
    for masks, given, message in (
        ([None, "missing.png", mask], maps, r"^masks\[1\] \('missing.png'\)"),
        ([None, mask, mask * 0.5], maps, r"^masks\[2\].*threshold"),
        ([mask, None, tmp_path / "turned.png"], maps, r"^masks\[2\].*size"),
        ([mask, None, None], holes, r"^maps\[2\].*finite"),
        ([mask, None, None], [*maps[:2], tmp_path / "nan.npy"], r"^maps\[2\].*finite"),
        ([mask, None, None], [maps[0], "gone.npy", maps[1]], r"^maps\[1\].*gone"),
        ([mask, None, None], [*maps[:2], maps[0][0]], r"^maps\[2\].*shape"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(masks, given)


def test_a_mask_of_a_stack_is_named():
    mask = np.ones((4, 5), bool)
    with pytest.raises(ValueError, match=r"^masks\[1\]\[1\] \('missing.png'\)"):
        spro_score([None, [mask, "missing.png"]], np.zeros((2, 4, 5)))


def test_masks_passed_as_y_are_named_so():
    with pytest.raises(ValueError, match=r"^y\[1\] \('missing.png'\)"):
        PixelScorer()(None, [0, 1], [None, "missing.png"])


def test_damaged_map_files_are_named(tmp_path):
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "several.npz", a=np.zeros((2, 2)))
    for path in (tmp_path / "empty.npy", tmp_path / "several.npz"):
        with pytest.raises(ValueError, match=rf"^maps\[0\].*{path.name}"):
            pixel_auroc(None, [path])


# The limit of large images ----------------------------------------------------


@pytest.fixture
def big(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).save(path)
    return paths


@pytest.fixture
def limit(monkeypatch):
    return lambda value: monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", value)


@pytest.mark.slow
def test_the_limit_reaches_worker_processes(big, limit):
    made = SyntheticAnomalies().fit(big)
    expected = made.transform(big)
    with Parallel(n_jobs=2) as parallel:
        limit(399)
        for transform in (made.transform, clone(made).fit_transform):
            with pytest.raises(ImageError, match="exceeds limit of 399 pixels"):
                parallel(delayed(transform)(big) for _ in range(2))
        limit(None)
        found = parallel(delayed(made.transform)(big) for _ in range(2))
    np.testing.assert_array_equal(found, [expected] * 2)


@pytest.mark.slow
def test_the_limit_reaches_nested_searches(big, limit):
    limit(399)
    model = Pipeline([filters(), PatchCoreDetector()])
    grid = {"patchcoredetector__coreset_ratio": [0.1, 0.2]}
    search = GridSearchCV(model, grid, scoring="accuracy", cv=2)
    with pytest.raises(ValueError, match="exceeds limit of 399 pixels"):
        cross_validate(search, big, [1] * 6, cv=2, n_jobs=2, scoring="accuracy")


def test_a_lifted_limit_goes_with_the_model(big, limit, tmp_path):
    model = Brightness().fit(big)
    limit(None)
    joblib.dump(model, tmp_path / "model.joblib")
    limit(PILLOW_LIMIT)
    loaded = joblib.load(tmp_path / "model.joblib")
    assert loaded._pixel_limit is None
    assert clone(loaded)._pixel_limit is None
    limit(100)  # what the process of the user says counts
    with pytest.raises(ImageError, match=r"limit of 100 .*worker processes"):
        loaded.predict(big)


def test_a_process_that_says_nothing_takes_the_limit_it_gets(
    big, limit, tmp_path, new_process
):
    """Pillow itself must not refuse, nor warn, where the model allows an image."""
    made = SyntheticAnomalies().fit(big)
    limit(None)
    joblib.dump(made, tmp_path / "made.joblib")
    code = (
        "import joblib, sys, warnings\n"
        "from PIL import Image\n"
        "from skad.images import _read\n"
        "warnings.simplefilter('error')\n"
        "Image.MAX_IMAGE_PIXELS = _read.PILLOW_LIMIT = 100\n"
        "made = joblib.load(sys.argv[1])\n"
        "print(made.transform(sys.argv[2:]).shape)\n"
    )
    printed = new_process(tmp_path / "made.joblib", *big, code=code)
    assert printed.strip() == "(6, 20, 20, 1)"


def test_states_are_not_marked_where_nobody_changed_the_limit(big):
    assert "_pixel_limit" not in Brightness().__getstate__()
    assert read_image(big[0]).shape == (20, 20, 1)


def test_a_scorer_takes_the_limit_to_its_masks(big, limit):
    limit(399)
    state = PixelScorer().__getstate__()
    limit(PILLOW_LIMIT)
    scorer = PixelScorer()
    scorer.__setstate__(state)
    with pytest.raises(ImageError, match="exceeds limit of 399 pixels"):
        scorer(None, [0], masks=[big[0]])

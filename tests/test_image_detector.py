import pickle
import re

import numpy as np
import pytest
import sklearn
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils import get_tags

from skad import Pipeline, anomaly_map
from skad._frame import Frame
from skad._maps import render
from skad.base import ImageDetector
from skad.base._threshold import threshold_of
from skad.features import SkippedImageWarning
from skad.images import ImageError
from skad.images._batches import ImageReader
from skad.metrics import image_auroc_scorer, pro_scorer
from skad.model_selection import OneClassSplit


class PixelDetector(ImageDetector):
    """Distance of each pixel from its mean, in standard deviations."""

    def __init__(
        self,
        floor=0.01,
        *,
        image_size=16,
        crop_size=None,
        batch_size=7,
        contamination=0.1,
        calibration="auto",
        sigma=0.0,
        on_error="raise",
        n_jobs=1,
        random_state=0,
        verbose=False,
    ):
        self.floor = floor
        self.image_size = image_size
        self.crop_size = crop_size
        self.batch_size = batch_size
        self.contamination = contamination
        self.calibration = calibration
        self.sigma = sigma
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, reader):
        batch = np.concatenate(list(reader.batches(self.batch_size)))
        self.mean_, self.std_ = batch.mean(axis=0), batch.std(axis=0)

    def _score_batch(self, batch):
        assert batch.dtype == np.float32
        assert len(batch) <= self.batch_size
        maps = np.abs(batch - self.mean_) / (self.std_ + self.floor)
        maps = maps.mean(axis=3)
        return maps.max(axis=(1, 2)), maps


def good_images(n, seed=0, size=(16, 16)):
    noise = np.random.default_rng(seed).normal(scale=10, size=(n, *size, 3))
    return np.clip(128 + noise, 0, 255).astype(np.uint8)


def anomalous_images(n, seed=1, size=(16, 16)):
    X = good_images(n, seed, size)
    X[:, 4:7, 9:12] = 255
    return X


@pytest.fixture(scope="module")
def model():
    return PixelDetector().fit(good_images(100))


@pytest.fixture
def files(tmp_path):
    """Forty images of which those at 3 and 20 are broken."""
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for path, image in zip(paths, good_images(40), strict=True):
        Image.fromarray(image).save(path)
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    paths[20].unlink()
    return paths


READABLE = np.delete(np.arange(40), [3, 20])


# -- reading a part of the images ----------------------------------------------------


def test_a_part_of_a_reader_keeps_the_positions(files):
    reader = ImageReader(files, Frame((16, 16), None), "skip", 2)
    part = reader[np.arange(40) > 1][np.array([0, 1, 18, 5])]
    assert len(part) == 4
    index, batch = next(part.indexed_batches(8))
    assert index.tolist() == [0, 3]
    np.testing.assert_array_equal(batch, [reader.read(2), reader.read(7)])
    assert [position for position, _ in part.skipped] == [3, 20]
    assert part.skipped[0][1].startswith("X[3]")
    assert reader.skipped == []


# -- decisions -----------------------------------------------------------------------


def test_scores_decisions_and_p_values(model):
    X = np.concatenate([good_images(30, seed=2), anomalous_images(10)])
    scores = model.score_samples(X)
    assert scores.shape == (40,)
    assert scores.dtype == np.float64
    assert scores[:30].min() > scores[30:].max()
    np.testing.assert_array_equal(model.decision_function(X), scores - model.offset_)
    assert (model.predict(X)[30:] == -1).all()
    assert (model.predict(X)[:30] == 1).mean() > 0.7
    p = model.p_value(X)
    assert ((p > 0) & (p <= 1)).all()
    assert p[30:] == pytest.approx(1 / 21)


def test_every_kind_of_input_gives_the_same(model, tmp_path):
    X = anomalous_images(3)
    expected = model.score_samples(X)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, X, strict=True):
        Image.fromarray(image).save(path)
    for other in (
        list(X),
        [Image.fromarray(image) for image in X],
        paths,
        [str(path) for path in paths],
        torch.from_numpy(X).permute(0, 3, 1, 2),
    ):
        np.testing.assert_array_equal(model.score_samples(other), expected)
    grey = model.score_samples(X[..., 0])
    np.testing.assert_allclose(grey, model.score_samples(X[..., :1]))


def test_labels_leave_images_out():
    X = np.concatenate([anomalous_images(10), good_images(50)])
    y = np.r_[[-1] * 10, [1] * 50]
    labelled, good = PixelDetector().fit(X, y), PixelDetector().fit(X[10:])
    np.testing.assert_array_equal(labelled.mean_, good.mean_)
    assert labelled.offset_ == good.offset_
    assert labelled.n_samples_seen_ == 40
    assert len(labelled.calibration_scores_) == 10
    with pytest.raises(ValueError, match="to_outlier_labels"):
        PixelDetector().fit(X, (1 - y) // 2)
    with pytest.raises(ValueError, match="every label is -1"):
        PixelDetector().fit(X, -np.ones(60))
    with pytest.raises(ValueError, match="inconsistent"):
        PixelDetector().fit(X, y[1:])


# -- calibration ---------------------------------------------------------------------


def test_calibrations():
    X = good_images(50)
    auto = PixelDetector().fit(X)
    split = PixelDetector(calibration="split").fit(X)
    assert auto.offset_ == split.offset_
    train = PixelDetector(calibration="train").fit(X)
    assert len(train.calibration_scores_) == 50
    assert (train.predict(X) == -1).sum() == 5
    folds = PixelDetector(calibration="kfold").fit(X)
    np.testing.assert_array_equal(folds.mean_, train.mean_)
    assert folds.calibration_maps_.shape == (50, 16, 16)
    fold = folds._folds(50)[0]
    first = PixelDetector(calibration="train").fit(np.delete(X, fold, axis=0))
    np.testing.assert_array_equal(
        folds.calibration_scores_[fold], first.score_samples(X[fold])
    )
    with pytest.raises(ValueError, match="'loo' is not offered by PixelDetector"):
        PixelDetector(calibration="loo").fit(X)
    with pytest.raises(ValueError, match="'calibration' parameter"):
        PixelDetector(calibration="none").fit(X)


def test_one_image_is_told_apart_with_a_warning():
    with pytest.warns(UserWarning, match="one training image"):
        PixelDetector(contamination=0.5).fit(good_images(1))


def test_too_few_images_say_so_at_the_callers_line():
    with pytest.warns(UserWarning, match="cannot certify") as caught:
        PixelDetector().fit(good_images(10))
    assert caught[0].filename == __file__


def test_calibrate(model):
    X = good_images(40, seed=3)
    other = pickle.loads(pickle.dumps(model))
    assert other.calibrate(
        np.concatenate([X, anomalous_images(4)]), [1] * 40 + [-1] * 4
    )
    assert len(other.calibration_scores_) == 40
    np.testing.assert_array_equal(other.calibration_scores_, model.score_samples(X))
    assert other.offset_ != model.offset_
    np.testing.assert_array_equal(other.mean_, model.mean_)


# -- maps ----------------------------------------------------------------------------


def test_maps_have_the_geometry_of_the_images(model):
    X = anomalous_images(9)
    maps = model.anomaly_map(X)
    assert maps.dtype == np.float32
    assert maps.shape == (9, 16, 16)
    row, column = np.unravel_index(maps[0].argmax(), (16, 16))
    assert 4 <= row < 7
    assert 9 <= column < 12
    large = anomalous_images(2, size=(32, 48))
    assert model.anomaly_map(large).shape == (2, 32, 48)
    assert model.anomaly_map(X, size=(5, 6)).shape == (9, 5, 6)
    with pytest.raises(ValueError, match="size=16"):
        model.anomaly_map(X, size=16)


def test_maps_are_a_list_where_sizes_differ(model):
    mixed = [anomalous_images(1)[0], anomalous_images(1, size=(32, 20))[0]]
    maps = model.anomaly_map(mixed)
    assert [m.shape for m in maps] == [(16, 16), (32, 20)]
    np.testing.assert_array_equal(maps[0], model.anomaly_map(mixed[:1])[0])
    masks = model.predict_mask(mixed)
    for m, mask in zip(maps, masks, strict=True):
        np.testing.assert_array_equal(mask, m > model.pixel_threshold(m.shape))
    assert model.predict_mask(mixed, size=(8, 8)).shape == (2, 8, 8)


def test_maps_of_a_crop_cover_its_part_of_the_image():
    model = PixelDetector(crop_size=8).fit(good_images(60))
    assert model.calibration_maps_.shape[1:] == (8, 8)
    X = anomalous_images(2, size=(32, 32))
    grids = model._score(model._reader(X))[1]
    maps = model.anomaly_map(X)
    np.testing.assert_array_equal(maps[:, 8:24, 8:24], render(grids, (16, 16), sigma=0))
    np.testing.assert_array_equal(maps[:, :8].max((1, 2)), grids.min((1, 2)))
    window = ((0.25, 0.75), (0.25, 0.75))
    assert model.window() == window
    drawn = model._render(model.calibration_maps_, (32, 32), window).max((1, 2))
    expected = threshold_of(drawn.astype(float), model.contamination_)
    assert model.pixel_threshold((32, 32)) == pytest.approx(expected, rel=1e-6)


def test_masks_of_good_images_stay_empty_as_promised():
    model = PixelDetector(contamination=0.1, sigma=1.0).fit(good_images(150))
    masks = model.predict_mask(good_images(200, seed=5))
    assert masks.dtype == bool
    assert masks.any(axis=(1, 2)).mean() < 0.2
    assert model.predict_mask(anomalous_images(20)).any(axis=(1, 2)).all()


def test_anomaly_map_of_any_estimator(model):
    X = anomalous_images(3)
    maps = model.anomaly_map(X)
    np.testing.assert_array_equal(anomaly_map(model, X), maps)
    with pytest.raises(ValueError, match="PixelDetector takes whole images"):
        anomaly_map(model, X, regions=[None] * 3)


def test_a_pipeline_of_nothing_but_a_detector(model):
    X = anomalous_images(3, size=(20, 24))
    pipeline = Pipeline([PixelDetector()]).fit(good_images(100))
    np.testing.assert_array_equal(pipeline.score_samples(X), model.score_samples(X))
    np.testing.assert_array_equal(pipeline.anomaly_map(X), model.anomaly_map(X))
    np.testing.assert_array_equal(pipeline.predict_mask(X), model.predict_mask(X))
    with pytest.raises(ValueError, match="needs a step that reads images"):
        pipeline.anomaly_map(X, regions=[None] * 3)


# -- images that cannot be read ------------------------------------------------------


def test_a_bad_file_is_named(files, model):
    with pytest.raises(ImageError, match=r"X\[3\].*3\.png"):
        PixelDetector().fit(files)
    y = np.ones(40)
    y[3] = -1
    with pytest.raises(ImageError, match=r"X\[20\].*20\.png"):
        PixelDetector().fit(files, y)
    with pytest.raises(ImageError, match=r"X\[1\].*3\.png"):
        model.score_samples(files[2:5])


@pytest.mark.parametrize("calibration", ["split", "kfold", "train"])
def test_bad_files_are_skipped(files, calibration):
    model = PixelDetector(on_error="skip", calibration=calibration, contamination=0.2)
    whole = clone(model).fit([files[i] for i in READABLE])
    with pytest.warns(SkippedImageWarning, match=r"2 of 40 .*X\[3\].*X\[20\]") as found:
        model.fit(files)
    assert sum(w.category is SkippedImageWarning for w in found) == 1
    assert found[0].filename == __file__
    np.testing.assert_array_equal(model.mean_, whole.mean_)
    assert model.offset_ == whole.offset_
    assert model.n_samples_seen_ == whole.n_samples_seen_


def test_bad_files_have_no_scores(files):
    model = PixelDetector(on_error="skip", contamination=0.2).fit(good_images(40))
    bad = ~np.isin(np.arange(40), READABLE)
    with pytest.warns(SkippedImageWarning, match=r"2 of 40") as caught:
        scores = model.score_samples(files)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(np.isnan(scores), bad)
    with pytest.warns(SkippedImageWarning):
        np.testing.assert_array_equal(model.predict(files) == 0, bad)
    with pytest.warns(SkippedImageWarning):
        np.testing.assert_array_equal(np.isnan(model.p_value(files)), bad)
    with pytest.warns(SkippedImageWarning):
        maps = model.anomaly_map(files)
    np.testing.assert_array_equal(np.isnan(maps).all(axis=(1, 2)), bad)
    assert np.isfinite(maps[READABLE]).all()
    with pytest.warns(SkippedImageWarning):
        assert not model.predict_mask(files)[bad].any()
    with pytest.warns(SkippedImageWarning):
        model.calibrate(files)
    assert len(model.calibration_scores_) == 38
    for call in (model.calibrate, model.fit):
        with pytest.raises(ImageError, match="none of the 1 images"):
            call(files[3:4])


# -- an estimator like any other -----------------------------------------------------


def test_clone_and_pickle(model):
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "offset_")
    X = anomalous_images(3)
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(loaded.score_samples(X), model.score_samples(X))
    np.testing.assert_array_equal(loaded.anomaly_map(X), model.anomaly_map(X))
    for method in ("partial_fit", "merge", "score"):
        assert not hasattr(model, method)


def test_tags_say_images():
    tags = get_tags(PixelDetector())
    assert tags.estimator_type == "outlier_detector"
    assert not tags.input_tags.two_d_array
    assert tags.input_tags.three_d_array
    assert tags.input_tags.string


@pytest.mark.parametrize("as_list", [False, True])
def test_search_by_image_and_by_pixels_at_once(as_list):
    X = np.concatenate([good_images(60), anomalous_images(20)])
    y = np.r_[[1] * 60, [-1] * 20]
    masks = np.zeros((80, 16, 16), bool)
    masks[60:, 4:7, 9:12] = True
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            PixelDetector(contamination=0.2),
            {"floor": [0.01, 0.1]},
            scoring={"image": image_auroc_scorer, "pro": pro_scorer},
            refit="pro",
            cv=OneClassSplit(2),
            error_score="raise",
        ).fit(list(X) if as_list else X, y, masks=masks)
    for name in ("image", "pro"):
        assert (search.cv_results_[f"mean_test_{name}"] > 0.9).all()
    assert anomaly_map(search, X[60:]).shape == (20, 16, 16)
    assert search.best_estimator_.n_samples_seen_ == 48


def test_progress_on_request(model, capsys):
    loud = pickle.loads(pickle.dumps(model)).set_params(verbose=True)
    loud.score_samples(good_images(9))
    assert re.search(r"images: 100%.* 9/9 ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        ([], ValueError, "X is empty"),
        ("image.png", TypeError, "single path"),
        (good_images(1)[0], ValueError, "looks like one image"),
        (np.zeros((4, 9, 9, 64), np.float32), ValueError, "takes images"),
        ([3], ImageError, r"X\[0\]"),
    ],
)
def test_what_is_no_sequence_of_images_is_refused(model, X, error, message):
    for call in (clone(model).fit, model.predict, model.anomaly_map, model.calibrate):
        with pytest.raises(error, match=message):
            call(X)


def test_errors_of_use(model):
    X = good_images(20)
    for call in ("predict", "anomaly_map", "predict_mask", "calibrate"):
        with pytest.raises(sklearn.exceptions.NotFittedError):
            getattr(PixelDetector(), call)(X)
    with pytest.raises(sklearn.exceptions.NotFittedError):
        PixelDetector().pixel_threshold((8, 8))
    with pytest.raises(ValueError, match="exceeds image_size"):
        PixelDetector(crop_size=20).fit(X)
    for name, value in [
        ("image_size", 0),
        ("on_error", "ignore"),
        ("contamination", 0.9),
        ("n_jobs", 1.5),
    ]:
        with pytest.raises(ValueError, match=name):
            PixelDetector(**{name: value}).fit(X)

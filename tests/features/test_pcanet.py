import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch.nn import functional

from skad import PatchCoreDetector, PCANetFeatures, Pipeline
from skad.datasets import make_textures
from skad.images import ImageError
from skad.metrics import image_auroc, pixel_auroc


@pytest.fixture(scope="module")
def data():
    return make_textures(
        n_normal=30, n_anomalous=12, size=96, texture="metal", random_state=0
    )


@pytest.fixture(scope="module")
def fitted(data):
    return PCANetFeatures(image_size=96).fit(data.train)


def few_filters(image_size=64):
    """The covariances of few channels take hardly any time."""
    return PCANetFeatures(image_size, n_filters=(8, 12, 12))


def test_shapes(fitted, data):
    features = fitted.transform(data.test)
    assert features.shape == (len(data.test), 12, 12, 64)
    assert features.dtype == np.float32
    assert fitted.grid_shape_ == (12, 12)
    assert fitted.n_features_out_ == 64
    assert [f.shape for f in fitted.filters_] == [
        (16, 3, 5, 5),
        (48, 35, 3, 3),
        (96, 96, 3, 3),
    ]


def test_training_features_are_standardised_and_white(data):
    features = PCANetFeatures(image_size=96).fit_transform(data.train).reshape(-1, 64)
    covariance = np.cov(features.T)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=0.3)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 0.1
    assert (np.diag(covariance) < 1.01).all()


def test_training_images_do_not_look_more_normal_than_new_ones(data):
    new = make_textures(
        n_normal=60, n_anomalous=0, size=96, texture="metal", random_state=7
    ).train

    def oddness(features):
        return np.median((features**2).mean(axis=(1, 2, 3)))

    # Means of two samples of patches: of one, the difference is within its spread.
    extractors = [PCANetFeatures(image_size=96, random_state=seed) for seed in (0, 1)]
    trained = np.mean([oddness(one.fit_transform(data.train)) for one in extractors])
    in_sample = np.mean([oddness(one.transform(data.train)) for one in extractors])
    unseen = np.mean([oddness(one.transform(new)) for one in extractors])
    assert in_sample < unseen <= trained


def test_labelled_defects_take_no_part_in_fit_transform(data):
    X = np.concatenate([data.train, data.test[-2:]])
    y = np.r_[data.y_train, -1, -1]
    extractor = few_filters(96)
    expected = extractor.fit_transform(data.train)
    found = extractor.fit_transform(X, y)
    np.testing.assert_allclose(found[:-2], expected, atol=1e-4)
    np.testing.assert_allclose(found[-2:], extractor.transform(X[-2:]), atol=1e-4)


def test_same_seed_same_bits(data):
    fitted = few_filters(96).fit(data.train)
    expected = fitted.transform(data.test)
    again = clone(fitted).fit(data.train)
    np.testing.assert_array_equal(again.transform(data.test), expected)
    other = clone(fitted).set_params(n_jobs=3, batch_size=7).fit(data.train)
    np.testing.assert_array_equal(other.transform(data.test), expected)
    new_draw = clone(fitted).set_params(random_state=1).fit(data.train)
    assert np.abs(new_draw.transform(data.test) - expected).max() > 1e-3


def test_a_pickle_gives_the_same_bits(fitted, data):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(
        again.transform(data.test), fitted.transform(data.test)
    )


def test_batches_do_not_matter(fitted, data):
    one_by_one = np.concatenate([fitted.transform(data.test[[i]]) for i in range(4)])
    np.testing.assert_array_equal(one_by_one, fitted.transform(data.test[:4]))


def test_filters_are_learned_from_good_images_only(fitted, data):
    X = np.concatenate([data.train, data.test[data.y_test == -1]])
    y = np.r_[data.y_train, np.full((data.y_test == -1).sum(), -1)]
    labelled = clone(fitted).fit(X, y)
    np.testing.assert_array_equal(
        labelled.transform(data.test), fitted.transform(data.test)
    )


@pytest.mark.usefixtures("numpy_state_untouched")
def test_images_of_every_kind(fitted, data):
    assert np.isfinite(fitted.transform([data.test[0][:50], data.test[1]])).all()
    grey = data.train.mean(axis=3).astype(np.uint8)
    assert np.isfinite(few_filters().fit_transform(grey)).all()
    wide = few_filters((64, 96)).fit_transform(data.train / 255.0)
    assert wide.shape[1:3] == (8, 12)


def test_one_image_and_constant_images_work(data):
    assert np.isfinite(few_filters().fit_transform(data.train[:1])).all()
    flat = np.full((3, 64, 64, 3), 128, np.uint8)
    features = few_filters().fit(flat)
    assert np.isfinite(features.transform(flat)).all()
    assert np.isfinite(features.transform(data.test)).all()


@pytest.mark.parametrize("side", [96, (66, 75)])
def test_features_are_those_of_the_plain_formulas(data, side):
    """Filter, rectify, pool, and put on the grid, all of a batch at once."""
    fitted = PCANetFeatures(side, n_filters=(6, 8, 8)).fit(data.train[:8])
    x = torch.from_numpy(next(fitted._checked_reader(data.test).batches(99)))
    x, grid, outputs = x.permute(0, 3, 1, 2).double() - 0.5, fitted.grid_shape_, []
    for k, filters in enumerate(fitted.filters_):
        margin = filters.shape[-1] // 2
        padded = functional.pad(x, (margin,) * 4, mode="reflect")
        found = functional.conv2d(padded, torch.from_numpy(filters).double())
        parts = [found.relu(), (-found).relu()]
        if k == 0:
            parts.append(functional.avg_pool2d(padded, filters.shape[-1], 1))
        x = functional.avg_pool2d(torch.cat(parts, dim=1), 2)
        outputs.append(functional.adaptive_avg_pool2d(x, grid))
    padded = functional.pad(torch.cat(outputs, dim=1), (1,) * 4, mode="replicate")
    responses = functional.avg_pool2d(padded, 3, 1).permute(0, 2, 3, 1).numpy()
    expected = (responses - fitted.position_mean_) / fitted.position_scale_
    expected = expected @ fitted.whitening_.astype(float)
    found = fitted.transform(data.test)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kernel_sizes": (5, 4, 3)}, "kernel_sizes=.* must be odd"),
        ({"kernel_sizes": (5, 3)}, "the same number of both"),
        ({"n_filters": (8, 0, 8)}, "n_filters=.* must be positive"),
        ({"image_size": 16}, "too small for 3 stages"),
        ({"n_components": 0}, "n_components"),
        ({"shrinkage": -1}, "shrinkage"),
    ],
)
def test_bad_parameters_are_named(data, parameters, message):
    with pytest.raises(ValueError, match=message):
        PCANetFeatures(**parameters).fit(data.train)


def test_finds_defects_in_metal(data):
    model = Pipeline([PCANetFeatures(image_size=96), PatchCoreDetector()])
    model.fit(data.train)
    assert image_auroc(data.y_test, model.score_samples(data.test)) > 0.9
    assert pixel_auroc(data.masks, model.anomaly_map(data.test)) > 0.9


def test_without_a_readable_image_there_is_nothing_to_learn():
    images = [np.full((70, 70, 3), np.nan)] * 3
    with pytest.raises(ImageError, match=r"none of the 3 images .* could be read"):
        PCANetFeatures(64, on_error="skip").fit(images)

"""PatchCore with a bank of bounded size, and fits that never hold all features."""

import copy
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.base import clone

from skad import (
    FusedFeatures,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
)
from skad.datasets import make_textures
from skad.neighbors import greedy_coreset, nearest

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
    pytest.mark.filterwarnings("ignore:X.28. scores far"),
]


@pytest.fixture(scope="module")
def images():
    return make_textures(n_normal=60, n_anomalous=4, size=64, random_state=0)


@pytest.fixture(scope="module")
def transformer(images):
    return small_features().fit(images.train)


def small_features(**given):
    return PCANetFeatures(
        64, kernel_sizes=(3, 3), n_filters=(4, 4), **{"batch_size": 8, **given}
    )


def noise(n, seed=0, d=6):
    return np.random.default_rng(seed).normal(size=(n, 4, 4, d)).astype(np.float32)


def streamed(X, **parameters):
    """A detector fitted on batches of features, as a pipeline does."""

    starts = range(0, len(X), 8)
    batches = [(np.arange(lo, min(lo + 8, len(X))), X[lo : lo + 8]) for lo in starts]
    return PatchCoreDetector(**parameters)._fit_batches(batches)


def same(a, b):
    for name in (
        "bank_",
        "coreset_indices_",
        "calibration_scores_",
        "calibration_maps_",
        "offset_",
    ):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)


def covering_radius(detector, X):
    return nearest(X.reshape(-1, X.shape[-1]), detector.bank_)[0].max()


# -- the size of the bank ----------------------------------------------------------


@pytest.mark.parametrize("coreset_ratio", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_bank_never_exceeds_its_size(coreset_ratio, metric):
    given = {"coreset_ratio": coreset_ratio, "metric": metric, "bank_size": 50}
    detector = PatchCoreDetector(**given).fit(noise(20))
    expected = min(50, int(320 * coreset_ratio))
    assert len(detector.bank_) == expected
    detector.partial_fit(noise(30, 1))
    assert len(detector.bank_) == 50
    other = PatchCoreDetector(**given).fit(noise(50, 2))
    detector.merge(other)
    assert len(detector.bank_) == len(detector.coreset_indices_) == 50
    everything = np.concatenate([noise(20), noise(30, 1), noise(50, 2)])
    rows = everything.reshape(-1, 6)
    np.testing.assert_array_equal(detector.bank_, rows[detector.coreset_indices_])
    assert len(streamed(everything, **given).bank_) == 50


def test_bank_size_caps_what_the_ratio_selects():
    X = noise(30)
    full = PatchCoreDetector(coreset_ratio=0.5).fit(X)
    capped = PatchCoreDetector(coreset_ratio=0.5, bank_size=100).fit(X)
    np.testing.assert_array_equal(capped.bank_, full.bank_[:100])
    same(
        PatchCoreDetector(coreset_ratio=0.1, bank_size=100).fit(X),
        PatchCoreDetector(coreset_ratio=0.1).fit(X),
    )
    few = streamed(X, coreset_ratio=0.1, bank_size=100)  # 480 patches, 48 rows
    assert len(few.bank_) == 48


def test_a_united_bank_is_reduced_by_the_greedy_selection():
    a = PatchCoreDetector(0.5, bank_size=60).fit(noise(20))
    b = PatchCoreDetector(0.5, bank_size=60).fit(noise(20, 1))
    both = np.concatenate([a.bank_, b.bank_])
    merged = copy.deepcopy(a).merge(b)
    np.testing.assert_allclose(
        np.sort(merged.bank_, axis=0), np.sort(both[greedy_coreset(both, 60)], axis=0)
    )
    assert covering_radius(merged, both[:, None, None]) < 2 * min(
        covering_radius(one, both[:, None, None]) for one in (a, b)
    )


def test_a_bank_that_never_fills_is_as_without_a_limit():
    X, more = noise(20), noise(20, 1)
    free, bounded = PatchCoreDetector(), PatchCoreDetector(bank_size=10_000)
    same(free.fit(X), bounded.fit(X))
    same(free.partial_fit(more), bounded.partial_fit(more))
    same(
        free.merge(PatchCoreDetector().fit(more)),
        bounded.merge(PatchCoreDetector().fit(more)),
    )
    same(PatchCoreDetector().fit(X), streamed(X, bank_size=10_000))


# -- streams -----------------------------------------------------------------------


def test_a_pipeline_that_holds_all_patches_gives_the_bits_of_fit(images, transformer):
    features = small_features().fit_transform(images.train)
    detector = PatchCoreDetector(bank_size=features[..., 0].size).fit(features)
    model = Pipeline([small_features(), clone(detector)]).fit(images.train)
    same(model[-1], detector)
    np.testing.assert_array_equal(
        model.predict(images.test), detector.predict(transformer.transform(images.test))
    )


@pytest.mark.parametrize("texture", ["metal", "granite", "fabric"])
def test_a_streamed_bank_covers_nearly_as_well_as_one_fit(texture):
    images = make_textures(80, 0, texture=texture, size=64, random_state=0).train
    X = small_features().fit_transform(images)
    for bank_size in (64, 256):
        one = PatchCoreDetector(1.0, bank_size=bank_size).fit(X)
        many = streamed(X, coreset_ratio=1.0, bank_size=bank_size)
        assert covering_radius(many, X) <= 1.3 * covering_radius(one, X)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"n_neighbors": 3},
        {"top_ratio": 0.05},
        {"reweight": None},
        {"metric": "cosine"},
    ],
)
def test_streamed_held_out_scores_are_near_those_that_hold_all(
    images, transformer, given
):
    X = transformer.transform(images.train)
    stream = streamed(X, coreset_ratio=1.0, bank_size=128, **given)
    exact = copy.deepcopy(stream)
    scores, maps = exact._score_left_out(X)
    exact._replace_held_out(scores, maps)
    assert stream.offset_ == pytest.approx(exact.offset_, rel=0.05)


@pytest.mark.parametrize("bank_size", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_held_out_scores_are_those_of_fits_without_each_image(bank_size):
    """Where rows of one image cover patches of others, as in clusters."""
    given = {"coreset_ratio": 1.0, "bank_size": bank_size, "random_state": 0}
    ratios = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        noise, places = rng.normal(size=(40, 6, 6, 3)), rng.normal(size=(40, 1, 1, 3))
        X = (noise + 3 * places).astype(np.float32)
        found = streamed(X, **given).calibration_scores_
        refitted = np.array(
            [
                streamed(np.delete(X, i, axis=0), **given).score_samples(X[i : i + 1])
                for i in range(len(X))
            ]
        ).ravel()
        assert np.corrcoef(found, refitted)[0, 1] > 0.85
        ratios.append(
            [found.mean(), np.quantile(found, 0.1)]
            / np.array([refitted.mean(), np.quantile(refitted, 0.1)])
        )
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1, atol=0.05)


@pytest.mark.parametrize("update", [False, True])
def test_the_same_seed_gives_the_same_bits(images, update):
    def model():
        one = Pipeline([small_features(), PatchCoreDetector(bank_size=100)])
        one.fit(images.train[:30] if update else images.train)
        return one.partial_fit(images.train[30:]) if update else one

    same(model()[-1], model()[-1])


def test_pipelines_update_in_streams(images):
    model = Pipeline([small_features(), PatchCoreDetector(bank_size=100)])
    model.partial_fit(images.train[:20]).partial_fit(images.train[20:])
    detector = model[-1]
    assert len(detector.bank_) == 100
    assert detector.n_samples_seen_ == 60
    assert len(detector.calibration_scores_) == 40  # the others are of too few images
    first = small_features().fit_transform(images.train[:20])
    features = np.concatenate([first, model[0].transform(images.train[20:])])
    rows = features.reshape(-1, detector.n_features_in_)
    np.testing.assert_allclose(
        detector.bank_, rows[detector.coreset_indices_], rtol=1e-6
    )


def test_features_from_a_cache_have_the_same_bits(images, tmp_path, monkeypatch):
    features = PatchFeatures("resnet10t", weights=False, image_size=64, batch_size=8)
    plain = Pipeline([features, PatchCoreDetector(bank_size=100)])
    plain.fit(images.train)
    cached = clone(plain).set_params(patchfeatures__cache_dir=tmp_path)
    seen = []
    original = PatchFeatures._extract

    def counting(self, batch):
        seen.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(PatchFeatures, "_extract", counting)
    cached.fit(images.train)
    same(cached[-1], plain[-1])
    assert sum(seen) <= len(images.train)  # no second time


def test_labels_regions_and_unreadable_images_are_left_out(images, tmp_path):
    X = list(images.train[:40])
    X[3] = tmp_path / "absent.png"
    y = np.ones(40)
    y[5] = -1
    mask = np.ones((64, 64), bool)
    mask[:, 40:] = False
    model = Pipeline(
        [small_features(on_error="skip", region=mask), PatchCoreDetector(bank_size=80)]
    )
    with pytest.warns(UserWarning, match="could not be read") as caught:
        model.fit(X, y)
    assert sum("could not be read" in str(one.message) for one in caught) == 1
    assert model[0].skipped_[0][0] == 3
    detector = model[-1]
    assert detector.n_samples_seen_ == len(detector.calibration_scores_) == 38
    learned = np.delete(np.arange(40), [3, 5])
    features = clone(model[0]).fit_transform(X, y)[learned]
    rows = features.reshape(-1, features.shape[3])[detector.coreset_indices_]
    np.testing.assert_allclose(rows, detector.bank_, rtol=1e-6)
    labels = Pipeline.fit_predict(clone(model), [X[i] for i in learned])
    assert set(labels) <= {1, -1}


def test_regions_of_each_image_reach_both_passes(images):
    masks = [np.ones((64, 64), bool) for _ in images.train]
    for i, mask in enumerate(masks):
        mask[i % 60 :] = i % 2 == 0
    model = Pipeline([small_features(), PatchCoreDetector(bank_size=100)])
    model.fit(images.train, regions=masks)
    assert np.isfinite(model[-1].bank_).all()
    features = clone(model[0]).fit_transform(images.train, regions=masks)
    exact = copy.deepcopy(model[-1])
    scores, _ = exact._score_left_out(features[~np.isnan(features).all((1, 2, 3))])
    assert np.isfinite(model[-1].calibration_maps_).all()
    np.testing.assert_allclose(
        np.median(-model[-1].calibration_scores_), np.median(scores), rtol=0.05
    )


def test_one_image_of_many_patches():
    with pytest.warns(UserWarning, match="one training image cannot be held out"):
        detector = streamed(noise(1).reshape(1, 4, 4, 6), bank_size=4)
    assert np.isfinite(detector.offset_)


def test_equal_images_are_told():
    X = np.repeat(noise(1), 20, axis=0)
    with pytest.warns(UserWarning, match="the 20 images to learn from do not differ"):
        detector = streamed(X, coreset_ratio=1.0, bank_size=20)
    assert len(detector.bank_) == 16


def test_an_outlier_among_the_images_is_named():
    X = noise(60)
    X[17] += 30
    with pytest.warns(UserWarning, match=r"X\[17\] scores far from all other"):
        streamed(X, bank_size=40)


def test_clones_and_copies(images):
    model = Pipeline([small_features(), PatchCoreDetector(bank_size=100)])
    model.fit(images.train)
    assert clone(model)[-1].bank_size == 100
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        again.score_samples(images.test), model.score_samples(images.test)
    )


@pytest.mark.parametrize("calibration", ["kfold", "split", "train"])
def test_other_calibrations_hold_the_features(images, calibration):
    given = {"bank_size": 100, "calibration": calibration}
    model = Pipeline([small_features(), PatchCoreDetector(**given)]).fit(images.train)
    assert len(model[-1].bank_) == 100


def test_memory_of_a_fit_does_not_grow_with_the_images():
    image = make_textures(12, 0, size=64, random_state=0).train

    class Endless:
        """Images that are made when they are asked for."""

        def __init__(self, n):
            self.n = n

        def __len__(self):
            return self.n

        def __getitem__(self, i):
            if not 0 <= i < self.n:
                raise IndexError(i)
            return np.roll(image[i % 12], 3 * i, axis=1)

    def peak(n):
        features = PatchFeatures("skad_small", image_size=64, batch_size=8)
        model = Pipeline([features, PatchCoreDetector(bank_size=128)])
        X = [Endless(n)[i] for i in range(n)]
        tracemalloc.start()
        try:
            model.fit(X)
            maps = model[-1].calibration_maps_.nbytes
            return tracemalloc.get_traced_memory()[1] - maps
        finally:
            tracemalloc.stop()

    peak(40)
    few, many = peak(40), peak(120)
    assert many < few + 80 * 3_000


def test_a_second_pass_gives_the_same_bits_in_silence(images, tmp_path):
    X = [*images.train[:20], tmp_path / "absent.png"]
    y = np.ones(21)
    y[4] = -1
    for features in (
        small_features(on_error="skip"),
        FusedFeatures(
            small_features(on_error="skip"),
            small_features(on_error="skip"),
        ),
    ):
        batches = features._fit_batches(X, y)
        with pytest.warns(UserWarning, match="could not be read"):
            first = list(batches)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = list(batches)
        for (place, found), (again, same_again) in zip(first, second, strict=True):
            np.testing.assert_array_equal(place, again)
            np.testing.assert_array_equal(found, same_again)
        assert [place for place, _ in features.skipped_] == [20]


# -- errors ------------------------------------------------------------------------


def test_a_bank_smaller_than_the_neighbours_is_refused():
    X = noise(10)
    for detector in (
        PatchCoreDetector(n_neighbors=5, bank_size=5),
        PatchCoreDetector(bank_size=1),
    ):
        with pytest.raises(ValueError, match=r"bank_size=\d is too small for n_neigh"):
            detector.fit(X)
    fitted = PatchCoreDetector(bank_size=20).fit(X)
    other = copy.deepcopy(fitted)
    for method in ("partial_fit", "merge"):
        with pytest.raises(ValueError, match=r"bank_size=3 .*Raise bank_size"):
            getattr(fitted.set_params(bank_size=3, n_neighbors=3), method)(
                X if method == "partial_fit" else other
            )
    for wrong in (0, -1, 2.5, "many"):
        with pytest.raises(ValueError, match="bank_size"):
            PatchCoreDetector(bank_size=wrong).fit(X)


def test_a_stream_needs_memory_for_its_banks_and_maps(monkeypatch):
    X = noise(40)
    model = streamed(X, bank_size=100)
    tracemalloc.start()
    streamed(X, bank_size=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    monkeypatch.setattr("skad._memory.available_memory", lambda: 2 * peak)
    streamed(X, bank_size=100)
    monkeypatch.setattr("skad._memory.available_memory", lambda: model.bank_.nbytes * 4)
    with pytest.raises(MemoryError, match=r"bank_size=100 needs .* Reduce bank_size"):
        streamed(X, bank_size=100)

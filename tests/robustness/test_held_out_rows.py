"""Rows that one part leaves out stay rows: each still means the image it was."""

import numpy as np
import pytest
from sklearn.base import clone

import skad
from skad.features import SkippedImageWarning
from skad.images import ImageError
from skad.inspection import recall_report
from skad.model_selection import OneClassSplit

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]
BAD = [2, 7, 11]  # one of which is labelled -1


@pytest.fixture
def mixed(textures, tmp_path):
    """Normal and anomalous images, some of which cannot be read, and a region each."""
    path = tmp_path / "damaged.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    X = [*textures.train[:12], *textures.test[-3:], *textures.train[12:]]
    y = np.ones(len(X), int)
    y[12:15] = -1
    y[7] = -1
    for i in BAD:
        X[i] = str(path)
    regions = [np.ones((64, 64), bool) for _ in X]
    for i, region in enumerate(regions):
        region[:8] = i % 2 == 0
    regions[4][:] = False  # nothing of this image is looked at
    return X, y, regions


def picked(mixed, keep):
    X, y, regions = mixed
    keep = np.flatnonzero(keep)
    return [X[i] for i in keep], y[keep], [regions[i] for i in keep]


DETECTORS = [
    *(skad.PaDiMDetector(), skad.PatchCoreDetector(), skad.SubspaceDetector()),
    *(skad.SPADEDetector(), skad.FusionDetector(n_channels=(64, 64))),
]


def builds(features, tmp_path):
    filters = skad.PCANetFeatures(
        64, n_filters=(4, 4, 4), n_components=8, on_error="skip"
    )
    return {
        "network": features(on_error="skip"),
        "cached": features(on_error="skip", cache_dir=str(tmp_path / "cache")),
        "filters": filters,
    }


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
@pytest.mark.parametrize("kind", ["network", "cached", "filters"])
@pytest.mark.parametrize("detector", DETECTORS, ids=lambda one: type(one).__name__[:6])
def test_what_is_left_out_leaves_the_rest_as_it_is(
    features, mixed, tmp_path, kind, detector
):
    if kind == "filters" and isinstance(detector, skad.FusionDetector):
        detector = clone(detector).set_params(n_channels="auto")
    build = builds(features, tmp_path)[kind]
    X, y, regions = mixed
    model = skad.Pipeline([build, clone(detector)])
    if kind == "cached":  # some are on disk, some not
        clone(build).fit_transform(X[5:10])
    read = ~np.isin(np.arange(len(X)), BAD)
    # Filters sample their patches by the number of images that are to be read.
    y = np.where(read, y, -1) if kind == "filters" else y
    model.fit(X, y, regions=regions)
    learned = read & (y == 1) & (np.arange(len(X)) != 4)
    assert model[-1].n_samples_seen_ == learned.sum()
    alone = skad.Pipeline([clone(build), clone(detector)])
    X_kept, _, regions_kept = picked(mixed, read & (y == 1))
    alone.fit(X_kept, regions=regions_kept)
    np.testing.assert_allclose(
        model[-1].calibration_scores_, alone[-1].calibration_scores_, rtol=1e-5
    )
    expected = np.full(len(X), np.nan)
    X_read, _, regions_read = picked(mixed, read)
    expected[read] = alone.score_samples(X_read, regions=regions_read)
    np.testing.assert_allclose(
        model.score_samples(X, regions=regions), expected, rtol=1e-5
    )
    assert np.flatnonzero(np.isnan(expected)).tolist() == sorted([*BAD, 4])


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
@pytest.mark.parametrize("kind", ["network", "cached", "filters"])
@pytest.mark.parametrize("detector", DETECTORS[:2], ids=["stream", "whole"])
def test_fit_predict_answers_for_each_row(features, mixed, tmp_path, kind, detector):
    X, y, regions = mixed
    build = builds(features, tmp_path)[kind]
    if kind == "cached":
        clone(build).fit_transform(X[9:14])
    model = skad.Pipeline([build, clone(detector).set_params(contamination=0.3)])
    found = model.fit_predict(X, y, regions=regions)
    assert np.flatnonzero(found == 0).tolist() == sorted([*BAD, 4])
    learned = (found != 0) & (y == 1)
    final = model[-1]
    held_out = final.calibration_scores_ >= final.offset_
    np.testing.assert_array_equal(found[learned] == 1, held_out)
    assert not held_out.all()
    predicted = model.predict(X, regions=regions)
    np.testing.assert_array_equal(found[y == -1], predicted[y == -1])


def test_calibration_scores_stand_in_the_order_of_X(features, textures, tmp_path):
    X = list(textures.train)
    cached = features(cache_dir=str(tmp_path), batch_size=4)
    cached.fit_transform([X[i] for i in (15, 3, 4, 10)])
    for detector in (skad.PaDiMDetector(), skad.PatchCoreDetector()):
        found = skad.Pipeline([clone(cached), clone(detector)]).fit(X)[-1]
        expected = clone(detector).fit(features().fit_transform(X))
        np.testing.assert_allclose(
            found.calibration_scores_, expected.calibration_scores_, rtol=1e-5
        )


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
def test_positions_of_skipped_images_are_those_of_X(features, mixed, tmp_path):
    X, y, _ = mixed
    for build in builds(features, tmp_path).values():
        model = skad.Pipeline([build, skad.PaDiMDetector()]).fit(X, y)
        skipped = [i for i, _ in model[0].skipped_]
        assert skipped in ([2, 11], BAD)  # those labelled -1 need not be read
        build.fit_transform(X, y)
        assert [i for i, _ in build.skipped_] == BAD
        assert all(f"X[{i}]" in reason for i, reason in build.skipped_)


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
def test_learning_on_and_calibrating_leave_the_same_rows_out(features, mixed):
    X, y, regions = mixed
    kept = picked(mixed, ~np.isin(np.arange(len(X)), BAD) & (y == 1))
    for detector in (skad.PaDiMDetector(), skad.PatchCoreDetector()):
        first = skad.Pipeline([features(on_error="skip"), clone(detector)])
        second = clone(first)
        for model, (images, labels, parts) in (
            (first, mixed),
            (second, kept),
        ):
            model.fit(list(kept[0][:6]))
            model.partial_fit(images, labels, regions=parts)
        assert first[-1].n_samples_seen_ == second[-1].n_samples_seen_
        assert first[-1].offset_ == pytest.approx(second[-1].offset_, rel=1e-5)
        first.calibrate(X, y, regions=regions)
        second.calibrate(kept[0], regions=kept[2])
        np.testing.assert_allclose(
            first[-1].calibration_scores_, second[-1].calibration_scores_, rtol=1e-5
        )


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
def test_fused_features_skip_for_both(features, mixed):
    X, y, _ = mixed
    filters = skad.PCANetFeatures(64, n_filters=(4, 4, 4), n_components=8)
    fused = skad.FusedFeatures(features(on_error="skip"), filters)
    found = fused.fit_transform(X, y)
    assert np.flatnonzero(np.isnan(found).all(axis=(1, 2, 3))).tolist() == BAD
    assert [i for i, _ in fused.skipped_] == BAD
    model = skad.Pipeline([clone(fused), skad.FusionDetector(skad.SubspaceDetector())])
    assert np.flatnonzero(model.fit(X, y).predict(X) == 0).tolist() == BAD


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
def test_masks_follow_their_images(textures, mixed):
    X, y, _ = mixed
    masks = [None] * len(X)
    for i, mask in zip((12, 13, 14), textures.masks[-3:], strict=True):
        masks[i] = mask
    options = {"backbone": "resnet10t", "weights": False, "model": "tiny"}
    detector = skad.PRNDetector(
        **options, max_steps=1, train_batch_size=4, image_size=64, on_error="skip"
    )
    detector.fit(X, y, masks=masks)
    assert detector.n_defects_seen_ == 3  # the fourth cannot be read
    assert np.flatnonzero(detector.predict(X) == 0).tolist() == BAD
    with pytest.raises(ValueError, match="masks has 3 entries, but X 19"):
        detector.fit(X, y, masks=masks[:3])


def test_lengths_that_differ_are_refused(features, textures):
    X, y = list(textures.train), np.ones(16, int)
    model = skad.Pipeline([features(), skad.PaDiMDetector()])
    whole = np.ones((64, 64), bool)
    for detector in (skad.PaDiMDetector(), skad.PatchCoreDetector()):
        model = skad.Pipeline([features(), detector])
        with pytest.raises(ValueError, match=r"\[16, 15\]"):
            model.fit(X, y[:15])
        with pytest.raises(ValueError, match="regions has 15 entries for 16 images"):
            model.fit(X, y, regions=[whole] * 15)
        model.fit(X, y)
        for method in ("predict", "anomaly_map", "predict_mask", "partial_fit"):
            with pytest.raises(ValueError, match="regions has 2 entries for 3 images"):
                getattr(model, method)(X[:3], regions=[whole] * 2)


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
def test_reports_and_folds_count_images_that_were_skipped(features, mixed):
    X, y, _ = mixed
    model = skad.Pipeline([features(on_error="skip"), skad.PatchCoreDetector()])
    model.fit(X, y)
    defects = [X[12], X[7], X[13]]
    with pytest.raises(ValueError, match=r"no score \(NaN\) at the positions \[1\]"):
        recall_report(model, defects, kinds=["hole", "cut", "cut"])
    with pytest.raises(ValueError, match="inconsistent"):
        recall_report(model, defects, kinds=["hole", "cut"])
    for train, test in OneClassSplit(2).split(X, y):
        fold = clone(model).fit([X[i] for i in train], y[train])
        labels = fold.predict([X[i] for i in test])
        np.testing.assert_array_equal(labels == 0, np.isin(test, BAD))


def test_all_rows_left_out(features, textures):
    model = skad.Pipeline([features(on_error="skip"), skad.PatchCoreDetector()])
    nothing = [np.zeros((64, 64), bool)] * 4
    with pytest.raises(ValueError, match="no normal image is left"):
        model.fit(textures.train[:4], regions=nothing)
    with pytest.raises(ImageError, match="none of the 2"):
        model.fit(["a.png", "b.png"])
    refused = pytest.raises(ValueError, match="no normal image")
    with pytest.warns(SkippedImageWarning), refused:
        model.fit(["a.png", textures.train[0]], [1, -1])


def test_fusion_sums_the_scores_of_the_same_images():
    X = np.random.default_rng(0).normal(size=(60, 3, 3, 4))
    padim = skad.PaDiMDetector(calibration_size=25)
    fusion = skad.FusionDetector(padim, n_channels=(2, 2)).fit(X)
    kept = fusion._left_out_images(len(X))
    assert 0 < len(kept) < 25  # each type keeps 25 images of its own
    total = 0.0
    for one, kind in zip(fusion.detectors_, (X[..., :2], X[..., 2:]), strict=True):
        alone = skad.PaDiMDetector(calibration_size=60).fit(kind)
        held_out = -alone.calibration_scores_[kept]
        total = total + (held_out - held_out.mean()) / held_out.std() / 2
        np.testing.assert_allclose(
            -one.calibration_scores_[np.isin(one._left_out_images(60), kept)], held_out
        )
    np.testing.assert_allclose(-fusion.calibration_scores_, total)


def test_fusion_names_an_outlier_among_updates():
    X = np.random.default_rng(0).normal(size=(60, 3, 3, 4))
    X[45] *= 40
    fusion = skad.FusionDetector(skad.SubspaceDetector(), n_channels=(2, 2)).fit(X[:30])
    with pytest.warns(UserWarning, match=r"X\[15\] scores far"):
        fusion.partial_fit(X[30:])

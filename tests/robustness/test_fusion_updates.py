"""FusionDetector learns on, as the detectors of its feature types do."""

import copy
import re

import numpy as np
import pytest
from sklearn.base import clone

from skad import (
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PUADDetector,
    SimpleNetDetector,
    SubspaceDetector,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot certify")
N_CHANNELS = (4, 2)


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(48, 4, 4, 6))


MEMBERS = {
    "patchcore": PatchCoreDetector,
    "padim": PaDiMDetector,
    "subspace": SubspaceDetector,
}


@pytest.fixture(params=list(MEMBERS))
def member(request):
    return MEMBERS[request.param]()


def alone(member, how):
    return clone(member).set_params(calibration=how, contamination=0.5)


def halves(X):
    return X[..., :4], X[..., 4:]


def how(member):
    return "loo" if hasattr(member, "_score_left_out") else "kfold"


def test_partial_fit_is_that_of_each_feature_type(X, member):
    fusion = (
        FusionDetector(member, n_channels=N_CHANNELS).fit(X[:20]).partial_fit(X[20:40])
    )
    assert fusion.n_samples_seen_ == 40
    total, maps = 0.0, 0.0
    for kind in halves(X):
        one = alone(member, how(member)).fit(kind[:20]).partial_fit(kind[20:40])
        held_out = -one.calibration_scores_
        scores = -one.score_samples(kind[40:])
        total = total + (scores - held_out.mean()) / held_out.std() / 2
        heat, known = one.anomaly_map(kind[40:]), one.calibration_maps_
        maps = maps + (heat - known.mean()) / known.std() / 2
    np.testing.assert_allclose(-fusion.score_samples(X[40:]), total, rtol=1e-6)
    np.testing.assert_allclose(fusion.anomaly_map(X[40:]), maps, rtol=1e-4, atol=1e-5)
    n_held_out = len(fusion.detectors_[0].calibration_scores_)
    assert len(fusion.calibration_scores_) == n_held_out
    assert len(fusion.calibration_maps_) == n_held_out


def test_merge_is_that_of_each_feature_type(X, member):
    one = FusionDetector(member, n_channels=N_CHANNELS).fit(X[:20])
    other = FusionDetector(member, n_channels=N_CHANNELS).fit(X[20:40])
    before = other.score_samples(X[40:])
    one.merge(other)
    assert one.n_samples_seen_ == 40
    for merged, kind in zip(one.detectors_, halves(X), strict=True):
        parts = [alone(member, how(member)).fit(kind[k : k + 20]) for k in (0, 20)]
        expected = parts[0].merge(parts[1])
        np.testing.assert_allclose(
            merged.score_samples(kind[40:]), expected.score_samples(kind[40:])
        )
        np.testing.assert_allclose(
            merged.calibration_scores_, expected.calibration_scores_
        )
    assert len(one.calibration_scores_) == 40
    np.testing.assert_array_equal(other.score_samples(X[40:]), before)


def test_a_copy_stays_as_it_was(X, member):
    fusion = FusionDetector(member, n_channels=N_CHANNELS).fit(X[:20])
    kept = copy.copy(fusion)
    before = kept.decision_function(X[40:])
    fusion.partial_fit(X[20:40])
    np.testing.assert_array_equal(kept.decision_function(X[40:]), before)


@pytest.mark.parametrize("calibration", ["kfold", "split", "train"])
def test_learning_on_with_other_ways_to_hold_out(X, calibration):
    fusion = FusionDetector(
        SubspaceDetector(), n_channels=N_CHANNELS, calibration=calibration
    )
    fusion.fit(X[:20])
    means = fusion.score_means_
    fusion.partial_fit(X[20:40])
    np.testing.assert_array_equal(fusion.score_means_, means)
    assert fusion.n_samples_seen_ == (32 if calibration == "split" else 40)
    with pytest.raises(ValueError, match=f"calibration='{calibration}'"):
        fusion.merge(copy.deepcopy(fusion))


@pytest.mark.filterwarnings("ignore:one training image")
def test_one_image_after_the_other(X):
    fusion = FusionDetector(SubspaceDetector(), n_channels=N_CHANNELS)
    for image in X[:12]:
        fusion.partial_fit(image[None])
    assert fusion.n_samples_seen_ == 12
    assert [one.calibration for one in fusion.detectors_] == ["kfold", "kfold"]
    assert np.isfinite(fusion.decision_function(X)).all()


@pytest.mark.parametrize(
    ("detector", "offered"),
    [
        (None, True),
        (PaDiMDetector(), True),
        (SimpleNetDetector(), False),
        (PUADDetector(), False),
        (FusionDetector(SubspaceDetector()), True),
        (FusionDetector(SimpleNetDetector()), False),
    ],
)
def test_offered_where_the_detectors_can(detector, offered):
    fusion = FusionDetector(detector)
    assert hasattr(fusion, "partial_fit") == offered
    assert hasattr(fusion, "merge") == offered


def test_other_feature_types_are_refused(X):
    one = FusionDetector(SubspaceDetector(), n_channels=N_CHANNELS).fit(X)
    other = FusionDetector(SubspaceDetector(), n_channels=(3, 3)).fit(X)
    with pytest.raises(ValueError, match=r"\(3, 3\) channels"):
        one.merge(other)
    with pytest.raises(ValueError, match="5 features"):
        one.partial_fit(X[..., :5])


def test_time_is_shown(X, capfd):
    FusionDetector(n_channels=N_CHANNELS, verbose=True).fit(X).partial_fit(X[:4])
    shown = capfd.readouterr().err
    assert len(re.findall(r"feature types:   0%.* 0/2 ", shown)) == 2
    assert len(re.findall(r"feature types: 100%.* 2/2 ", shown)) >= 2
    assert "coreset" in shown

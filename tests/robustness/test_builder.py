"""Networks by name are built in one place for every estimator that takes a name."""

import numpy as np
import pytest
import torch

from skad import CutPasteDetector, PatchFeatures, PRNDetector, SPDPatchFeatures

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot certify")

STEPS = {"max_steps": 1, "image_size": 64, "calibration": "train"}


def patch_features(**parameters):
    return PatchFeatures(layers="auto", image_size=64, **parameters)


def spd(**parameters):
    return SPDPatchFeatures(layers="auto", image_size=64, max_steps=1, **parameters)


def cutpaste(**parameters):
    return CutPasteDetector(**parameters, train_batch_size=2, **STEPS)


def prn(**parameters):
    return PRNDetector(**parameters, model="tiny", **STEPS)


ALL = pytest.mark.parametrize("make", [patch_features, spd, cutpaste, prn])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)


@ALL
def test_a_name_that_nobody_knows(make, images):
    with pytest.raises(ValueError, match=r"'resnet19' is not a model of .* Similar"):
        make(backbone="resnet19", weights=False).fit(images)


@ALL
def test_weights_true(make, images):
    with pytest.raises(ValueError, match="weights=True is ambiguous"):
        make(backbone="resnet10t", weights=True).fit(images)


@ALL
def test_a_file_that_is_not_there(make, images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*does not exist"):
        make(backbone="resnet10t", weights=tmp_path / "none.pth").fit(images)


@ALL
def test_a_file_of_something_else(make, images, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"could not be built with weights=.*other"):
        make(backbone="resnet10t", weights=tmp_path / "other.pth").fit(images)


@ALL
def test_weights_that_can_be_neither_found_nor_downloaded(
    make, images, tmp_path, monkeypatch
):
    """The hub is switched off in tests."""
    with pytest.raises(OSError, match="cannot be downloaded: offline mode is set"):
        make(backbone="resnet10t.c3_in1k", weights=None).fit(images)


@ALL
def test_a_model_without_pretrained_weights(make, images):
    with pytest.raises(ValueError, match="timm has no pretrained weights"):
        make(backbone="nf_resnet26", weights=None).fit(images)


@pytest.mark.parametrize("weights", [False, None])
def test_cutpaste_takes_the_network_that_ships(weights, images):
    detector = cutpaste(backbone="skad_small", weights=weights).fit(images)
    assert detector.location_.shape == (96,)
    assert np.isfinite(detector.score_samples(images)).all()


def test_prn_says_why_the_network_that_ships_does_not_serve(images):
    with pytest.raises(ValueError, match=r"no level of stride 4, only of \[8, 16\]"):
        prn(backbone="skad_small").fit(images)


@pytest.mark.parametrize("make", [patch_features, cutpaste, prn])
def test_the_seed_determines_random_weights(make, images):
    """Whatever torch's generator is at; and this stays where it is."""
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        fitted = make(backbone="resnet10t", weights=False, random_state=3).fit(images)
        assert torch.equal(torch.random.get_rng_state(), before)
        states.append(fitted)
    if make is cutpaste:
        for name, value in states[0].state_.items():
            np.testing.assert_array_equal(value, states[1].state_[name])
    else:
        assert states[0].weights_sha256_ == states[1].weights_sha256_


def test_the_default_embedding_is_that_of_the_network(images):
    small = PatchFeatures("skad_small", image_size=64)
    assert small.fit_transform(images).shape == (6, 8, 8, 128)
    assert small.embedding == "auto"
    assert patch_features(backbone="resnet10t", weights=False).fit_transform(
        images
    ).shape == (6, 8, 8, 1024)
    assert small.set_params(embedding="mean1d").fit(images).n_features_out_ == 1024
    own = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8))
    assert PatchFeatures(own, ("0",), image_size=64).fit(images).n_features_out_ == 1024

import numpy as np
import pytest
import timm

from skad.pipeline import Pipeline
from skad.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_model(name):
    preset = PRESETS[name]
    model = preset.make(random_state=3)
    assert preset.source
    detector = model[-1] if preset.features else model
    assert isinstance(model, Pipeline) == (preset.features is not None)
    assert type(detector) is preset.detector
    assert detector.random_state == 3
    parameters = detector.get_params()
    assert preset.parameters.items() <= parameters.items()
    assert set(preset.needs) <= set(parameters)
    if preset.features:
        features = preset.transformer(**preset.features)
        assert features.get_params() == model[0].set_params(random_state=0).get_params()


def test_networks_have_the_weights_of_the_papers():
    """A bare name stands for weights that are newer than the papers."""
    known = timm.list_models(pretrained=True)
    for name, preset in PRESETS.items():
        backbone = (preset.features or preset.parameters).get("backbone")
        if name != "cutpaste" and backbone is not None:  # it trains from scratch
            assert "." in backbone
            assert backbone in known


def test_settings_take_the_place_of_those_of_the_preset():
    preset = PRESETS["patchcore-1"]
    model = preset.make(patch_features={"weights": False}, coreset_ratio=0.5)
    assert model[0].weights is False
    assert model[0].crop_size == 224
    assert model[-1].coreset_ratio == 0.5
    with pytest.raises(ValueError, match="DRAEMDetector takes images"):
        PRESETS["draem"].make(patch_features={"weights": False})
    with pytest.raises(TypeError):
        PRESETS["draem"] = preset


def test_features_have_the_dimensions_of_the_papers():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name, n in (
        ("padim-r18", 100),
        ("padim-r18-pca", 100),
        ("anomalydino-448", 384),
    ):
        small = {"weights": False, "image_size": 56}
        small |= {"crop_size": None} if name.startswith("padim") else {}
        features = PRESETS[name].make(patch_features=small)[0]
        assert features.fit([image]).n_features_out_ == n

"""What an import loads, each in a process that has loaded nothing yet."""

import json
import subprocess
import sys

import joblib
import numpy as np
import pytest

import skad

# Statement by statement, on top of those before: what is loaded can only grow.
STATEMENTS = [
    "import skad",
    "import skad; dir(skad)",
    "import skad.images",
    "from skad import Pipeline, PatchFeatures, PCANetFeatures, PatchCoreDetector",
    "import skad.metrics, skad.datasets, skad.model_selection, skad.neighbors",
    "import skad.monitoring",
]
CODE = """
import json, sys
for statement in json.loads(sys.argv[1]):
    exec(statement)
    print(json.dumps(sorted(name.split(".")[0] for name in sys.modules)))
"""


@pytest.fixture(scope="module")
def loaded():
    """Top-level packages loaded after each statement."""
    command = [sys.executable, "-c", CODE, json.dumps(STATEMENTS)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(zip(STATEMENTS, map(json.loads, printed.splitlines()), strict=True))


@pytest.mark.parametrize("statement", STATEMENTS)
def test_imports_load_neither_torch_nor_timm(loaded, statement):
    assert "skad" in loaded[statement]
    assert not {"torch", "timm"} & set(loaded[statement])


def test_importing_skad_loads_nothing_heavy(loaded):
    assert not {"sklearn", "scipy", "numpy", "PIL"} & set(loaded["import skad"])


FIRST_ANSWER = """
import sys, numpy as np
if sys.argv[1].endswith(".joblib"):
    import joblib
    model = joblib.load(sys.argv[1])
else:
    import skad
    model = skad.load(sys.argv[1])
print(model.predict(np.zeros((2, 64, 64, 3), np.uint8)).tolist())
print(*sys.modules)
"""
NEVER_NEEDED = (
    "matplotlib",
    "onnx",
    "sympy",
    "timm",
    "torch._dynamo.",
    "torch._inductor",
    "torchvision",
    "triton",
)
# skops imports all of scikit-learn, to know its estimators.
LEFT_OUT_OF_SKLEARN = (
    "sklearn.cluster",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "sklearn.neighbors",
)


@pytest.fixture(scope="module")
def fitted_model():
    images = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8)
    features = skad.PatchFeatures("skad_small", image_size=64)
    return skad.make_pipeline(features, skad.PatchCoreDetector()).fit(images)


@pytest.mark.parametrize("suffix", [".joblib", ".skad"])
def test_first_answer_of_a_fitted_model_needs_no_timm(fitted_model, suffix, tmp_path):
    """Neither timm nor torch's compiler, which take longer than the answer."""
    file, left_out = tmp_path / f"model{suffix}", NEVER_NEEDED
    if suffix == ".joblib":
        joblib.dump(fitted_model, file)
        left_out += LEFT_OUT_OF_SKLEARN
    else:
        pytest.importorskip("skops")
        skad.save(fitted_model, file)
    command = [sys.executable, "-c", FIRST_ANSWER, str(file)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    labels, modules = run.stdout.splitlines()
    assert labels == "[-1, -1]"
    assert "torch" in modules.split()
    assert [name for name in modules.split() if name.startswith(left_out)] == []


def test_every_public_name_is_there():
    for name in skad.__all__:
        assert getattr(skad, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        skad.missing  # noqa: B018

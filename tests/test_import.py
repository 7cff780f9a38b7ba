import subprocess
import sys

import pytest

import skad


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import skad",
        "import skad; dir(skad)",
        "from skad import Pipeline, PatchFeatures, PCANetFeatures, PatchCoreDetector",
        "import skad.metrics, skad.datasets, skad.model_selection, skad.neighbors",
    ],
)
def test_imports_load_neither_torch_nor_timm(statement):
    loaded = run(f"{statement}; import sys; print(sorted(sys.modules))")
    assert "'torch'" not in loaded
    assert "'timm'" not in loaded


def test_importing_skad_loads_nothing_heavy():
    loaded = run("import skad, sys; print(sorted(sys.modules))")
    for package in ("sklearn", "scipy", "numpy", "PIL"):
        assert f"'{package}'" not in loaded


def test_every_public_name_is_there():
    for name in skad.__all__:
        assert getattr(skad, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        skad.missing  # noqa: B018

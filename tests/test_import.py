"""What an import loads, each in a process that has loaded nothing yet."""

import json
import subprocess
import sys

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


def test_every_public_name_is_there():
    for name in skad.__all__:
        assert getattr(skad, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        skad.missing  # noqa: B018

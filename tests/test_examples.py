"""The examples on real images; the documentation runs them as they stand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("quickstart", [], "image AUROC 1.000"),
        ("update", [], "PaDiM"),
        ("train", ["--epochs", "2", "--steps", "40"], "EfficientAD"),
        ("spd", ["--steps", "4", "--rate", "1e-4"], "SPD"),
        ("grid_search", ["--layers", "blocks.4"], "best by PRO"),
    ],
)
def test_example(name, more, says, shared, tmp_path):
    command = [sys.executable, EXAMPLES / f"{name}.py", "--data"]
    command += [shared / "data" / "mvtec_bottle_256"]
    command += ["--backbone", "mobilenetv2_100", "--weights"]
    command += [shared / "weights" / "mobilenetv2_100_imagenet.safetensors"]
    command += ["--backbone-kwargs", '{"pad_type": "same"}', *more]
    environment = dict(os.environ, PYTHONPATH=str(EXAMPLES.parent), MPLBACKEND="Agg")
    printed = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    assert says in printed
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000

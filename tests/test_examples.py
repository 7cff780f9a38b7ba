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
        ("synthesis", ["--foreground", "auto"], "rank correlation"),
        ("train", ["--epochs", "2", "--steps", "40"], "EfficientAD"),
        ("spd", ["--steps", "4", "--rate", "1e-4"], "SPD"),
        ("grid_search", ["--layers", "blocks.4"], "best by PRO"),
        ("prn", ["--steps", "20", "--size", "64"], "unseen kinds: pixel AP"),
        ("made_defects", ["--steps", "20", "--cutpaste-steps", "5"], "CutPaste"),
    ],
)
def test_example(name, more, says, shared, tmp_path):
    command = [sys.executable, EXAMPLES / f"{name}.py", "--data"]
    command += [shared / "data" / "mvtec_bottle_256", *more]
    if name != "made_defects":  # which starts from nothing
        command += ["--backbone", "mobilenetv2_100", "--weights"]
        command += [shared / "weights" / "mobilenetv2_100_imagenet.safetensors"]
        command += ["--backbone-kwargs", '{"pad_type": "same"}']
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

"""The examples on images in folders; the documentation runs them as they stand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skad.datasets import make_textures

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(new_process, folder, name, *options):
    """What an example prints; it also writes a picture."""
    printed = new_process(*options, script=EXAMPLES / f"{name}.py", folder=folder)
    assert (folder / f"{name}.png").stat().st_size > 10_000
    return printed


@pytest.mark.slow
def test_quickstart_on_a_folder(new_process, tmp_path):
    """Without weights, or a mask for every image."""
    data = make_textures(n_normal=12, n_anomalous=4, size=64, random_state=0)
    folders = ["train/good"] * 12 + [
        "test/good" if kind == "good" else f"test/{kind}" for kind in data.defect_types
    ]
    for i, (name, image) in enumerate(
        zip(folders, [*data.train, *data.test], strict=True)
    ):
        (tmp_path / "parts" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)).save(tmp_path / "parts" / name / f"{i}.png")
    printed = run(new_process, tmp_path, "quickstart", "--data", tmp_path / "parts")
    assert "12 normal images to learn from, 8 new ones" in printed
    assert "image AUROC" in printed


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
        ("prn", ["--steps", "20", "--size", "64"], "unseen types: pixel AP"),
        ("synthetic_anomalies", ["--epochs", "5", "--cutpaste-steps", "5"], "CutPaste"),
    ],
)
def test_example(name, more, says, shared, few_photographs, new_process, tmp_path):
    options = ["--data", few_photographs / "mvtec_bottle_256", *more]
    if name != "synthetic_anomalies":  # which starts from nothing
        options += ["--backbone", "mobilenetv2_100", "--weights"]
        options += [shared / "weights" / "mobilenetv2_100_imagenet.safetensors"]
        options += ["--backbone-kwargs", '{"pad_type": "same"}']
    assert says in run(new_process, tmp_path, name, *options)

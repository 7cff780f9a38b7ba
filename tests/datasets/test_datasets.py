import numpy as np
import pytest
from PIL import Image

from skad.datasets import load_mvtec, load_visa, make_textures, to_outlier_labels


@pytest.fixture
def folder(tmp_path):
    base = tmp_path / "data" / "nut"
    for name in ("train/good", "test/good", "test/bent", "ground_truth/bent"):
        (base / name).mkdir(parents=True)
    image = Image.new("RGB", (8, 6))
    for name in ("train/good/10", "train/good/2", "test/good/0", "test/bent/0"):
        image.save(base / f"{name}.png")
    image.convert("L").save(base / "ground_truth/bent/0_mask.png")
    return base


def test_load_mvtec(folder):
    data = load_mvtec(folder.parent, "nut")
    assert [p.name for p in data.train] == ["2.png", "10.png"]
    np.testing.assert_array_equal(sorted(data.y_test), [-1, 1])
    assert len(data.test) == len(data.masks) == len(data.defect_types) == 2
    for path, label, mask, kind in zip(
        data.test, data.y_test, data.masks, data.defect_types, strict=True
    ):
        assert path.parent.name == kind
        assert (label == 1) == (kind == "good") == (mask is None)
    assert load_mvtec(str(folder.parent), "nut").train == data.train


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("", "Category not found"),
        ("train/good", "train"),
        ("test", "test"),
        ("ground_truth/bent/0_mask.png", "mask"),
    ],
)
def test_what_is_missing_is_named(folder, missing, message):
    import shutil

    target = folder / missing if missing else folder
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_mvtec(folder.parent, "nut")


def test_masks_may_be_missing_on_request(folder):
    (folder / "ground_truth/bent/0_mask.png").unlink()
    with pytest.warns(UserWarning, match="1 of . anomalous images have no mask"):
        data = load_mvtec(folder.parent, "nut", require_masks=False)
    (position,) = data.unmasked
    assert data.test[position].name == "0.png"
    assert data.masks[position] is None
    known = [i for i, y in enumerate(data.y_test) if y == -1 and i != position]
    assert all(data.masks[i].is_file() for i in known)


@pytest.fixture
def visa(tmp_path):
    rows = ["object,split,label,image,mask"]
    for i, (split, label) in enumerate(
        [("train", "normal"), ("test", "normal"), ("test", "anomaly")]
    ):
        image, mask = f"nut/Data/Images/{i}.JPG", f"nut/Data/Masks/{i}.png"
        bad = label == "anomaly"
        rows.append(f"nut,{split},{label},{image},{mask if bad else ''}")
        for name in (image, mask):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_load_visa(visa):
    data = load_visa(visa, "nut")
    assert [p.name for p in data.train] == ["0.JPG"]
    assert [p.name for p in data.test] == ["1.JPG", "2.JPG"]
    np.testing.assert_array_equal(data.y_test, [1, -1])
    assert data.masks[0] is None
    assert data.masks[1].name == "2.png"
    with pytest.raises(ValueError, match=r"category='bolt'.*nut"):
        load_visa(visa, "bolt")
    with pytest.raises(FileNotFoundError, match="2cls"):
        load_visa(visa, "nut", split="2cls")
    (visa / "nut/Data/Masks/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.png"):
        load_visa(visa, "nut")


def test_real_sets(shared):
    for name, n_train, n_bad in (
        ("mvtec_bottle_256", 209, 63),
        ("magnetic_tile", 762, 386),
    ):
        data = load_mvtec(shared / "data", name)
        assert len(data.train) == n_train
        assert (data.y_test == -1).sum() == n_bad
        assert sum(m is not None for m in data.masks) == n_bad


@pytest.mark.parametrize("texture", ["fabric", "metal", "granite"])
def test_textures(texture):
    data = make_textures(3, 4, texture=texture, size=(64, 80), random_state=0)
    assert data.train.shape == (3, 64, 80, 3)
    assert data.train.dtype == np.uint8
    assert data.masks.dtype == bool
    flagged = data.masks.any(axis=(1, 2))
    np.testing.assert_array_equal(flagged, data.y_test == -1)
    assert [kind != "good" for kind in data.defect_types] == flagged.tolist()
    assert len({image.tobytes() for image in data.train}) == 3


@pytest.mark.usefixtures("numpy_state_untouched")
def test_textures_repeat_bit_for_bit():
    first = make_textures(3, 2, size=64, random_state=4)
    again = make_textures(3, 2, size=64, random_state=4)
    for name in ("train", "test", "masks"):
        np.testing.assert_array_equal(first[name], again[name])
    more = make_textures(5, 2, size=64, random_state=4)
    np.testing.assert_array_equal(more.train[:3], first.train)


@pytest.mark.parametrize(
    "parameters",
    [
        {"texture": "wood"},
        {"size": 8},
        {"n_normal": -1},
        {"defect_types": ["rust"]},
        {"defect_types": "tear"},
    ],
)
def test_bad_texture_parameters_are_named(parameters):
    name = next(iter(parameters))
    with pytest.raises(ValueError, match=name):
        make_textures(**parameters)


def test_labels_convert_once_and_explicitly():
    np.testing.assert_array_equal(to_outlier_labels([0, 1, 0]), [1, -1, 1])
    np.testing.assert_array_equal(to_outlier_labels([0, 1, 0], anomaly=0), [-1, 1, -1])
    np.testing.assert_array_equal(to_outlier_labels([True, False]), [-1, 1])
    words = to_outlier_labels(["ok", "bad"], anomaly="bad")
    np.testing.assert_array_equal(words, [1, -1])

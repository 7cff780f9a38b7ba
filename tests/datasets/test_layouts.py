"""Each published layout, written small, is recognised and read as documented."""

import pickle
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from skad.datasets import (
    list_categories,
    load,
    load_cifar10,
    load_folder,
    load_kolektor,
    load_kolektor2,
    load_mvtec,
    load_mvtec_ad2,
    load_mvtec_loco,
    load_real_iad,
    load_shanghaitech,
    load_visa,
    one_class_split,
    saturation_areas,
)
from skad.images import read_image, read_mask
from skad.metrics import image_auroc, pixel_auroc, pro_score, spro_score
from tests.datasets import _layouts
from tests.datasets._layouts import LAYOUTS

# A small copy has other numbers of images than were published, and load says so.
pytestmark = pytest.mark.filterwarnings("ignore:The category:UserWarning")
OPTIONS = {"folder": {"masks": "masks/{folder}/{stem}_mask.png"}}
small = pytest.mark.filterwarnings("ignore:.*published are:UserWarning")


@small
@pytest.mark.parametrize("title", LAYOUTS)
def test_load_recognises_each_layout(tmp_path, title):
    write, category = LAYOUTS[title]
    write(tmp_path)
    data = load(tmp_path, category, **OPTIONS.get(title, {}))
    assert data.layout == title
    names = list_categories(tmp_path)
    assert category is None or category in names
    assert len(data.train) > 0
    assert (data.y_train == 1).all()
    assert len(data.y_train) == len(data.train)
    assert len(data.test) == len(data.y_test) == len(data.defect_types)
    assert set(data.y_test.tolist()) == {1, -1}
    for label, kind in zip(data.y_test, data.defect_types, strict=True):
        assert (label == 1) == (kind == "good")
    assert len(data.anomalous) == len(data.anomalous_types)
    if title == "CIFAR-10":
        assert data.masks is None
        return
    for label, mask in zip(data.y_test, data.masks, strict=True):
        assert (label == 1) == (mask is None)
        if mask is not None:
            marked = read_mask(mask)
            assert marked.shape == _layouts.SIZE[::-1]
            assert marked.sum() == 100
    assert data.unmasked == []
    for image, mask in zip(data.anomalous, data.anomalous_masks, strict=True):
        assert image.is_file()
        assert read_mask(mask).any()
    assert not set(data.train) & (set(data.test) | set(data.anomalous))


@small
@pytest.mark.parametrize("title", [title for title in LAYOUTS if title != "CIFAR-10"])
def test_labels_and_masks_are_those_of_the_photographs(
    tmp_path, monkeypatch, shared, title
):
    pictures = _layouts.photographs(shared)
    monkeypatch.setattr(_layouts, "PICTURES", pictures)
    write, category = LAYOUTS[title]
    write(tmp_path)
    data = load(tmp_path, category, **OPTIONS.get(title, {}))
    broken = pictures.anomalous[pictures.mask].astype(int)

    def is_broken(image):  # JPEG changes it by up to 8, other bottles differ by 14
        return abs(read_image(image)[pictures.mask] - broken).mean() < 11

    for image, label, mask in zip(data.test, data.y_test, data.masks, strict=True):
        assert is_broken(image) == (label == -1)
        if mask is not None:
            np.testing.assert_array_equal(read_mask(mask), pictures.mask)
    assert not any(map(is_broken, data.train))


def test_all_of_a_layout_are_the_same_fields(tmp_path):
    fields = {}
    for title, (write, category) in LAYOUTS.items():
        folder = tmp_path / title.replace(" ", "")
        write(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fields[title] = set(load(folder, category, **OPTIONS.get(title, {})))
    common = set.intersection(*fields.values())
    assert common == fields["MVTec AD"]
    assert fields["MVTec AD 2"] - common == {"private", "private_mixed"}
    assert fields["MVTec LOCO"] - common == {"defects_config"}


def test_a_folder_of_one_category_is_recognised(tmp_path):
    _layouts.mvtec_ad(tmp_path)
    data = load(tmp_path / "bottle")
    assert (data.layout, data.category, len(data.train)) == ("MVTec AD", "bottle", 4)
    with pytest.raises(ValueError, match=r"category is missing.*bottle, cable"):
        load(tmp_path)


def test_what_is_not_recognised_is_described(tmp_path):
    with pytest.raises(FileNotFoundError, match="Folder of the data set not found"):
        load(tmp_path / "nowhere")
    (tmp_path / "stuff").mkdir()
    with pytest.raises(
        ValueError, match=r"not known; it has the folders: stuff.*load_f"
    ):
        load(tmp_path)
    _layouts.mvtec_ad(tmp_path / "outer/mvtec")
    with pytest.raises(ValueError, match=r"Its folder 'mvtec' has a known one: pass "):
        list_categories(tmp_path / "outer")
    _layouts.kolektor2(tmp_path / "kolektor2")
    with pytest.raises(
        ValueError, match="category='x': this data set has no categories"
    ):
        load(tmp_path / "kolektor2", "x")


def test_published_numbers_are_compared_with(tmp_path):
    _layouts.mvtec_ad(tmp_path)
    with pytest.warns(
        UserWarning,
        match=r"'bottle' of MVTec AD has 4 normal training images, published are 209; "
        r"2 normal test images.* 20; 2 anomalous test .* 63 \(Bergmann.*incomplete",
    ):
        load_mvtec(tmp_path, "bottle")
    # One's own data with one name in common are no copy of MVTec AD.
    shutil.rmtree(tmp_path / "cable")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_mvtec(tmp_path, "bottle")


@pytest.mark.parametrize(
    ("title", "part", "total"),
    [
        ("MVTec AD", "normal training", 3629),
        ("MVTec AD", "normal test", 467),
        ("MVTec AD", "anomalous test", 1258),
        ("MVTec LOCO", "normal training", 1772),
        ("MVTec LOCO", "validation", 304),
        ("MVTec LOCO", "normal test", 575),
        ("MVTec LOCO", "anomalous test", 993),
        ("VisA", "normal training", 8659),
        ("VisA", "normal test", 962),
        ("VisA", "anomalous test", 1200),
        ("MPDD", "normal training", 888),
        ("MPDD", "normal test", 176),
        ("MPDD", "anomalous test", 282),
    ],
)
def test_published_numbers_add_up_to_the_published_totals(title, part, total):
    from skad.datasets._counts import PUBLISHED

    counts = PUBLISHED[title].counts.values()
    assert sum(category[part] for category in counts) == total


def test_folders_in_other_capitals_and_files_of_other_formats(tmp_path):
    _layouts.mvtec(tmp_path / "Nut", suffix=".TIFF")
    base = tmp_path / "Nut"
    for old, new in (("train", "Train"), ("test", "TEST"), ("ground_truth", "GT")):
        (base / old).rename(base / new)
    (base / "GT").rename(base / "Ground_Truth")
    (base / "Train/good").rename(base / "Train/Good")
    (base / "TEST/good").rename(base / "TEST/GOOD")
    (base / "Train/Good/Thumbs.db").touch()
    data = load_mvtec(tmp_path, "nut")
    assert [len(data.train), len(data.test)] == [4, 4]
    assert sorted(data.defect_types) == ["bad_scratch"] * 2 + ["good"] * 2
    assert sum(mask is not None for mask in data.masks) == 2
    assert load(tmp_path).layout == "MVTec AD"


def test_images_in_deeper_folders_are_not_left_out_unseen(tmp_path):
    _layouts.mvtec(tmp_path / "nut")
    _layouts.many(tmp_path / "nut/train/good/monday", 2)
    with pytest.raises(ValueError, match=r"good must have .* in the folder 'monday'"):
        load_mvtec(tmp_path, "nut")


def test_a_mask_without_an_image(tmp_path):
    _layouts.mvtec(tmp_path / "nut")
    (tmp_path / "nut/test/bad_scratch/001.png").unlink()
    with pytest.warns(UserWarning, match=r"1 mask\(s\) have no image.*001_mask\.png"):
        load_mvtec(tmp_path, "nut")


@small
@pytest.mark.parametrize(
    ("title", "missing", "error", "message"),
    [
        (
            "BTAD",
            "01/ground_truth/ko/001.png",
            FileNotFoundError,
            "001.bmp has no mask",
        ),
        ("MVTec LOCO", "pushpins/validation", FileNotFoundError, "validation"),
        (
            "MVTec LOCO",
            "pushpins/ground_truth/structural_anomalies/000",
            FileNotFoundError,
            r"has no mask: expected .*structural_anomalies/000/000\.png",
        ),
        ("MVTec AD 2", "vial/test_public/good", None, ""),
        (
            "MVTec AD 2",
            "vial/test_public/ground_truth",
            FileNotFoundError,
            "000.png has no mask",
        ),
        ("KolektorSDD", "kos03/Part1_label.bmp", FileNotFoundError, "Part1.jpg has no"),
        (
            "KolektorSDD2",
            "test/10002_GT.png",
            FileNotFoundError,
            "10002.png has no mask",
        ),
        ("DAGM", "Class1/Test/0001.PNG", FileNotFoundError, "0001_label.PNG has no im"),
        (
            "Real-IAD",
            "realiad_256/mint/OK/S0000/mint_0000_OK_C1.jpg",
            FileNotFoundError,
            r"File named in .*mint\.json: .*mint_0000_OK_C1\.jpg",
        ),
        (
            "ShanghaiTech Campus",
            "testing/test_frame_mask/01_0014.npy",
            FileNotFoundError,
            "Labels or masks of a video not found: .*test_frame_mask",
        ),
        (
            "CIFAR-10",
            "cifar-10-batches-py/data_batch_4",
            FileNotFoundError,
            "Batch not found",
        ),
    ],
)
def test_what_a_layout_lacks_is_named(tmp_path, title, missing, error, message):
    write, category = LAYOUTS[title]
    write(tmp_path)
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if error is None:
        load(tmp_path, category)
        return
    with pytest.raises(error, match=message):
        load(tmp_path, category)


@small
@pytest.mark.parametrize("title", ["BTAD", "MVTec LOCO", "MVTec AD 2", "VisA"])
def test_masks_may_be_missing_on_request(tmp_path, title):
    write, category = LAYOUTS[title]
    write(tmp_path)
    if title == "VisA":
        table = tmp_path / "split_csv/1cls.csv"
        table.write_text(
            table.read_text().replace("nut/Data/Masks/Anomaly/000.png", "")
        )
    else:
        truth = next(tmp_path.glob("**/ground_truth"))
        shutil.rmtree(truth)
    with pytest.raises(FileNotFoundError, match="has no mask"):
        load(tmp_path, category)
    with pytest.warns(UserWarning, match="anomalous images have no mask"):
        data = load(tmp_path, category, require_masks=False)
    assert len(data.unmasked) == (1 if title == "VisA" else 2)
    assert all(data.masks[i] is None and data.y_test[i] == -1 for i in data.unmasked)


# Single layouts ---------------------------------------------------------------


def test_loco_masks_are_one_per_defect_with_its_saturation_area(tmp_path):
    _layouts.mvtec_loco(tmp_path)
    data = load_mvtec_loco(tmp_path, "pushpins")
    assert len(data.validation) == 3
    at = [i for i, mask in enumerate(data.masks) if mask is not None]
    assert [len(data.masks[i]) for i in at] == [2, 1]
    areas = saturation_areas(data)
    # 30 pixels, half of the area, and what is more than the area.
    assert [areas[i].tolist() for i in at] == [[30.0, 50.0], [100.0]]
    assert all(areas[i] is None for i in range(len(areas)) if i not in at)
    # A map that finds 30 of the 100 pixels: all of the first defect, 60 % of the
    # second and 30 % of the third.
    heat = np.zeros(_layouts.SIZE[::-1], np.float32)
    heat[10:13, 10:20] = 1
    maps = [heat if mask is not None else np.zeros_like(heat) for mask in data.masks]
    n_normal = sum(h.size for h in maps) - 200
    limit = 1e-3
    found = spro_score(data.masks, maps, areas, max_fpr=limit)
    # From no false positives to all other pixels at once the curve is a line.
    start = np.mean([1, 0.6, 0.3])
    assert found == pytest.approx(start + (1 - start) * limit / 2, rel=1e-3)
    assert n_normal > 0
    # The defects of an image are one mask to all other metrics.
    whole = [None if m is None else read_mask(m) for m in data.masks]
    assert pro_score(data.masks, maps) == pro_score(whole, maps)
    assert pixel_auroc(data.masks, maps) == pixel_auroc(whole, maps)


def test_loco_files_that_do_not_fit(tmp_path):
    _layouts.mvtec_loco(tmp_path)
    base = tmp_path / "pushpins"
    mask = base / "ground_truth/structural_anomalies/000/000.png"
    for value, message in ((7, "got 7"), (0, "got none")):
        _layouts.save(mask, value)
        data = load_mvtec_loco(tmp_path, "pushpins")
        with pytest.raises(
            ValueError, match=rf"000\.png must have one grey .*{message}"
        ):
            saturation_areas(data)
    config = base / "defects_config.json"
    config.write_text('[{"pixel_value": 255}]')
    with pytest.raises(ValueError, match="saturation_threshold, relative_saturation"):
        load_mvtec_loco(tmp_path, "pushpins")
    config.write_text("[")
    with pytest.raises(ValueError, match="is no JSON"):
        load_mvtec_loco(tmp_path, "pushpins")
    config.unlink()
    with pytest.raises(FileNotFoundError, match="Saturation areas not found"):
        load_mvtec_loco(tmp_path, "pushpins")
    _layouts.mvtec(tmp_path / "nut")
    with pytest.raises(ValueError, match="data has no defects_config"):
        saturation_areas(load_mvtec(tmp_path, "nut"))


def test_several_files_of_one_image_must_have_one_size(tmp_path):
    _layouts.save(tmp_path / "0.png", 255)
    Image.new("L", (3, 4)).save(tmp_path / "1.png")
    files = [tmp_path / "0.png", str(tmp_path / "1.png")]
    with pytest.raises(ValueError, match=r"masks\[0\]: the masks of one image differ"):
        read_mask(files)
    with pytest.raises(ValueError, match=r"1\.png"):
        read_mask(files, size=_layouts.SIZE[::-1])


def test_private_images_of_mvtec_ad2_have_no_labels(tmp_path):
    _layouts.mvtec_ad2(tmp_path)
    data = load_mvtec_ad2(tmp_path, "vial")
    assert [len(data.validation), len(data.private), len(data.private_mixed)] == [
        3,
        3,
        5,
    ]
    assert not {*data.private, *data.private_mixed} & {*data.train, *data.test}
    shutil.rmtree(tmp_path / "vial/test_private")
    assert load_mvtec_ad2(tmp_path, "vial").private == []


@small
@pytest.mark.parametrize(
    ("split", "n_train", "n_anomalous", "n_test"),
    [("1cls", 6, 0, 6), ("2cls_highshot", 5, 2, 5), ("2cls_fewshot", 2, 1, 9)],
)
def test_splits_of_visa(tmp_path, split, n_train, n_anomalous, n_test):
    _layouts.visa(tmp_path)
    data = load_visa(tmp_path, "nut", split=split)
    assert len(data.train) == n_train
    assert len(data.anomalous) == len(data.anomalous_masks) == n_anomalous
    assert data.anomalous_types == ["anomaly"] * n_anomalous
    assert len(data.test) == n_test
    with pytest.raises(FileNotFoundError, match="There are: 1cls, 2cls_few"):
        load_visa(tmp_path, "nut", split="3cls")


@small
def test_commutators_of_kolektor_are_in_one_part(tmp_path):
    _layouts.kolektor(tmp_path)
    data = load_kolektor(tmp_path)
    tested = {path.parent.name for path in data.test}
    trained = {path.parent.name for path in [*data.train, *data.anomalous]}
    assert (len(tested), len(trained)) == (2, 4)
    assert not tested & trained
    assert len(data.anomalous) == 4
    again = load_kolektor(tmp_path, random_state=0)
    assert again.test == data.test
    others = [load_kolektor(tmp_path, random_state=k).test for k in range(1, 5)]
    assert any(test != data.test for test in others)
    for size in (0, 1, 0.01, "half"):
        with pytest.raises(ValueError, match="test_size"):
            load_kolektor(tmp_path, test_size=size)
    with pytest.raises(FileNotFoundError, match="No folders kos01"):
        load_kolektor(tmp_path / "kos01")


@small
def test_labels_of_kolektor2_come_from_masks(tmp_path):
    _layouts.kolektor2(tmp_path)
    data = load_kolektor2(tmp_path)
    assert [len(data.train), len(data.anomalous), len(data.test)] == [4, 1, 4]
    assert data.anomalous[0].name == "10002.png"
    assert data.y_test.tolist() == [1, 1, -1, 1]


def test_splits_and_resolutions_of_real_iad(tmp_path):
    _layouts.real_iad(tmp_path)
    data = load_real_iad(tmp_path, "mint")
    assert [len(data.train), len(data.anomalous), len(data.test)] == [4, 0, 4]
    assert data.defect_types == ["good", "good", "AK", "AK"]
    noisy = load_real_iad(tmp_path, "mint", split="realiad_jsons_fuiad_0.1")
    assert [len(noisy.train), len(noisy.anomalous), len(noisy.test)] == [4, 1, 3]
    with pytest.raises(FileNotFoundError, match=r"splits: realiad_jsons, .*: mint"):
        load_real_iad(tmp_path, "mint", split="realiad_jsons_sv")
    with pytest.raises(FileNotFoundError, match="has the resolutions: 256"):
        load_real_iad(tmp_path, "mint", resolution=1024)
    shutil.copytree(tmp_path / "realiad_256", tmp_path / "realiad_raw")
    with pytest.raises(ValueError, match=r"several resolutions.*256, raw"):
        load_real_iad(tmp_path, "mint")
    assert "realiad_raw" in str(load(tmp_path, "mint", resolution="raw").train[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "lists train and test"),
        ('{"train": [{}], "test": []}', "without image_path"),
        ('{"train": [], "test": []}', "no normal training image"),
    ],
)
def test_damaged_splits_of_real_iad(tmp_path, content, message):
    _layouts.real_iad(tmp_path)
    (tmp_path / "realiad_jsons/realiad_jsons/mint.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_real_iad(tmp_path, "mint")


@small
def test_frames_and_masks_of_shanghaitech(tmp_path):
    _layouts.shanghaitech(tmp_path)
    data = load_shanghaitech(tmp_path)
    assert [path.name for path in data.train] == ["000.jpg", "005.jpg", "010.jpg"] * 2
    assert [path.name for path in data.test] == ["000.jpg", "005.jpg"] * 2
    assert data.y_test.tolist() == [1, -1, 1, -1]
    assert data.videos == ["01_0014"] * 2 + ["02_0128"] * 2
    assert isinstance(data.masks[1], np.memmap)  # on disk until it is looked at
    one = load_shanghaitech(tmp_path, scene=2, every=1)
    assert [len(one.train), len(one.test), one.category] == [11, 7, "02"]
    assert one.y_test.tolist() == [1] * 4 + [-1] * 3
    with pytest.raises(ValueError, match=r"scene 03.*scenes: 01, 02"):
        load_shanghaitech(tmp_path, 3)
    with pytest.raises(ValueError, match="every=0"):
        load_shanghaitech(tmp_path, every=0)
    (tmp_path / "testing/frames/01_0014/000.jpg").unlink()
    with pytest.raises(ValueError, match="has 6 frames, but 7 labels"):
        load_shanghaitech(tmp_path)


@small
@pytest.mark.parametrize("binary", [False, True])
def test_batches_of_cifar10(tmp_path, binary):
    _layouts.cifar10(tmp_path, binary=binary)
    data = load_cifar10(tmp_path, "ship")
    assert data.train.shape == (10, 32, 32, 3)
    assert data.test.shape == (20, 32, 32, 3)
    assert data.train.dtype == np.uint8
    assert np.flatnonzero(data.y_test == 1).tolist() == [8, 18]
    rows = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    first = rows[8].reshape(3, 32, 32)
    np.testing.assert_array_equal(data.train[0], np.moveaxis(first, 0, -1))
    folder = next(tmp_path.iterdir())
    assert load_cifar10(folder, "cat").train.shape == (10, 32, 32, 3)
    with pytest.raises(ValueError, match="category='boat' is not one of airplane"):
        load_cifar10(tmp_path, "boat")


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    _layouts.cifar10(tmp_path)

    class Harmful:
        def __reduce__(self):
            return print, ("run",)

    path = tmp_path / "cifar-10-batches-py/data_batch_1"
    path.write_bytes(pickle.dumps({"data": Harmful(), "labels": []}))
    with pytest.raises(ValueError, match=r"builtins\.print is not loaded"):
        load_cifar10(tmp_path, "ship")
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="is no batch of CIFAR-10"):
        load_cifar10(tmp_path, "ship")


def test_one_class_of_paths():
    paths = ["a.png", "b.png", "c.png"]
    data = one_class_split(paths, [0, 1, 1], paths, [0, 1, 1], normal=1)
    assert data.train == ["b.png", "c.png"]
    assert data.test == paths
    assert data.y_test.tolist() == [-1, 1, 1]
    assert data.defect_types == ["0", "good", "good"]
    with pytest.raises(ValueError, match=r"normal=5 does not occur in y_train.*0, 1"):
        one_class_split(paths, [0, 1, 1], paths, [0, 1, 1], normal=5)
    with pytest.raises(ValueError, match="y_test must have one label for each image"):
        one_class_split(paths, [0, 1, 1], paths, [0], normal=1)


# One's own folders ------------------------------------------------------------


def test_own_folder_with_masks_by_pattern(tmp_path):
    _layouts.own_folder(tmp_path)
    data = load_folder(tmp_path, masks="masks/{folder}/{stem}_mask.*")
    assert [len(data.train), len(data.test)] == [8, 4]
    assert data.defect_types == ["good"] * 2 + ["bad_scratch"] * 2
    assert [mask and mask.name for mask in data.masks] == [
        *(None, None),
        *("000_mask.png", "001_mask.png"),
    ]
    (tmp_path / "masks/bad_scratch/001_mask.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"001\.png has no mask: .*001_mask\.\*"
    ):
        load_folder(tmp_path, masks="masks/{folder}/{stem}_mask.*")
    for pattern in ("masks/x.png", "masks/{name}.png", "{stem"):
        with pytest.raises(ValueError, match="masks="):
            load_folder(tmp_path, masks=pattern)


def test_own_folder_without_masks(tmp_path):
    _layouts.own_folder(tmp_path)
    with pytest.raises(ValueError, match=r"masks in the folder 'masks'.*'masks/{fold"):
        load_folder(tmp_path)
    data = load_folder(tmp_path, anomalous="bad_scratch")
    assert data.masks is None
    assert data.unmasked == [2, 3]
    assert data.defect_types[2:] == ["bad_scratch"] * 2


def test_own_folder_with_several_masks_of_an_image(tmp_path):
    _layouts.own_folder(tmp_path)
    _layouts.save(tmp_path / "masks/bad_scratch/001_mask2.png", 255)
    data = load_folder(tmp_path, masks="masks/{folder}/{stem}_mask*.png")
    assert {mask.name for mask in data.masks[3]} == {"001_mask.png", "001_mask2.png"}
    assert read_mask(data.masks[3]).sum() == 100


def test_own_folder_with_masks_beside_images(tmp_path):
    _layouts.many(tmp_path / "ok", 5)
    _layouts.many(tmp_path / "Bad [1]", 2)
    for i in range(2):
        _layouts.save(tmp_path / f"Bad [1]/{i:03}_mask.png", 255)
    data = load_folder(tmp_path, normal="OK", masks="{folder}/{stem}_mask.png")
    assert [path.name for path in data.test[1:]] == ["000.png", "001.png"]
    assert all(mask.is_file() for mask in data.masks[1:])


def test_own_folder_as_it_is_said(tmp_path):
    _layouts.many(tmp_path / "train/fine/monday", 3)
    _layouts.many(tmp_path / "train/fine/tuesday", 3)
    _layouts.many(tmp_path / "test/fine", 2)
    _layouts.many(tmp_path / "test/crack/a", 1)
    _layouts.save(tmp_path / "masks/test/crack/a/000.png", 255)
    options = {
        "normal": "train/fine",
        "test_normal": "test/fine",
        "anomalous": "test/crack",
        "masks": "masks/{folder}/{stem}.png",
    }
    data = load_folder(tmp_path, nested=True, **options)
    assert [len(data.train), len(data.test)] == [6, 3]
    assert data.defect_types == ["good", "good", "test/crack"]
    assert data.masks[2].is_file()
    with pytest.raises(ValueError, match="nested=True"):
        load_folder(tmp_path, **options)
    with pytest.raises(FileNotFoundError, match="Folder of anomalous images not found"):
        load_folder(tmp_path, normal="train/fine", nested=True, anomalous=["dent"])
    with pytest.raises(FileNotFoundError, match="Folder of normal images not found"):
        load_folder(tmp_path, anomalous="test/crack")


# From end to end --------------------------------------------------------------


@small
@pytest.mark.filterwarnings("ignore:. held-out images cannot certify:UserWarning")
@pytest.mark.parametrize("title", ["BTAD", "MVTec LOCO", "ShanghaiTech Campus"])
def test_from_a_folder_to_metrics(tmp_path, title):
    from skad import PatchCoreDetector, PatchFeatures
    from skad.pipeline import make_pipeline

    write, category = LAYOUTS[title]
    write(tmp_path)
    data = load(tmp_path, category)
    features = PatchFeatures("skad_small", image_size=64)
    model = make_pipeline(features, PatchCoreDetector()).fit(data.train)
    maps = model.anomaly_map(data.test)
    assert image_auroc(data.y_test, model.score_samples(data.test)) > 0.5
    assert pixel_auroc(data.masks, maps) > 0.5
    if title == "MVTec LOCO":
        assert 0 < spro_score(data.masks, maps, saturation_areas(data)) <= 1


def test_real_folders_are_recognised(shared):
    for name, n_train, n_bad in (
        ("mvtec_bottle_256", 209, 63),
        ("magnetic_tile", 762, 386),
    ):
        data = load(shared / "data", name)
        assert data.layout == "MVTec AD"
        assert (len(data.train), (data.y_test == -1).sum()) == (n_train, n_bad)
        assert load(shared / "data" / name).test == data.test

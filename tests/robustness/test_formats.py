"""Images, masks, regions and folders: one reader, one list of formats each."""

import codecs
import os

import numpy as np
import pytest
from PIL import Image

from skad import DRAEMDetector, EfficientADDetector, PRNDetector
from skad.datasets import load_mvtec, load_visa
from skad.features._regions import Regions, read_region
from skad.images import ImageError, list_images, read_image, read_mask
from skad.metrics import pixel_auroc, pro_score, spro_score
from skad.synthesis import SyntheticAnomalies

SHAPE = (6, 8)


def picture(path):
    """Some picture, in the format that the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(48, dtype=np.uint8).reshape(SHAPE)
    if path.suffix.lower() == ".npy":
        with path.open("wb") as file:
            np.save(file, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


# Folders ----------------------------------------------------------------------

NAMES = [
    "1.png",
    "2.PNG",
    "3.Jpg",
    "4.tiff",
    "5.npy",
    "6.NPY",
    "7.ppm",
    "8.gif",
    "10.BMP",
]
NO_IMAGES = [
    ".hidden.png",
    "._1.png",
    "Thumbs.db",
    ".DS_Store",
    "desktop.ini",
    "notes.txt",
    "model.h5",
    "film.mpg",
]


@pytest.fixture
def folder(tmp_path):
    base = tmp_path / "folder"
    for name in NAMES:
        picture(base / name)
    for name in NO_IMAGES:
        (base / name).write_bytes(b"0")
    picture(base / "more" / "9.png")
    picture(base / ".cache" / "9.png")
    (base / "album.png").mkdir()  # a folder, whatever it is called
    return base


def test_files_of_a_folder(folder):
    found = list_images(folder)
    assert [path.name for path in found] == NAMES
    assert list_images(str(folder)) == found
    nested = list_images(folder, nested=True)
    assert set(nested) - set(found) == {folder / "more" / "9.png"}
    for path in nested:
        assert read_image(path).shape[:2] == SHAPE


def test_order_does_not_depend_on_the_file_system(tmp_path):
    for name in ("img10.png", "img9.png", "IMG2.png", "01.png", "1.png", "a².png"):
        picture(tmp_path / name)
    names = [path.name for path in list_images(tmp_path)]
    assert names == ["01.png", "1.png", "a².png", "IMG2.png", "img9.png", "img10.png"]


def test_folders_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(FileNotFoundError, match=r"no images in .*\.npy"):
        list_images(tmp_path, nested=True)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*gone"):
        list_images(tmp_path / "gone")
    with pytest.raises(NotADirectoryError, match="is a file"):
        list_images(tmp_path / "notes.txt")


TAKE_FOLDERS = {
    "synthesis": lambda images: SyntheticAnomalies("perlin", texture_images=images),
    "DRAEM": lambda images: DRAEMDetector("tiny", texture_images=images, image_size=64),
    "PRN": lambda images: PRNDetector(texture_images=images, image_size=64),
    "EfficientAD": lambda images: EfficientADDetector(
        "tiny", penalty_images=images, image_size=64
    ),
}


def sources(kind, images):
    """The images that an estimator reads beside X."""
    estimator = TAKE_FOLDERS[kind](images)
    if kind == "synthesis":
        return list(estimator.fit(np.zeros((1, 16, 16, 3))).sources_)
    name = "penalty_images" if kind == "EfficientAD" else "texture_images"
    reader = estimator._side_reader(name, (64, 64))
    assert reader.read(0).shape == (64, 64, 3)
    return [reader.item(i)[0] for i in range(len(reader))]


@pytest.mark.parametrize("kind", TAKE_FOLDERS)
def test_textures_and_other_photographs_may_be_a_folder(folder, kind):
    expected = list_images(folder, nested=True)
    assert sources(kind, folder) == expected
    assert sources(kind, str(folder)) == expected
    assert sources(kind, expected) == expected


@pytest.mark.parametrize("kind", TAKE_FOLDERS)
def test_a_bad_folder_is_named_by_its_argument(folder, kind):
    name = "penalty_images" if kind == "EfficientAD" else "texture_images"
    empty = folder / "empty"
    empty.mkdir()
    for images, message in (
        (folder / "gone", "there is no folder"),
        (empty, "no images in"),
        (folder / "1.png", "is a file"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}=.*{message}"):
            sources(kind, images)


# Data sets --------------------------------------------------------------------


@pytest.fixture
def bottle(tmp_path):
    base = tmp_path / "mvtec" / "bottle"
    for name in (
        *("train/good/001.PNG", "train/good/002.npy", "test/good/001.TIF"),
        *("test/cut/001.PNG", "test/cut/002.png", "test/cut/003.bmp"),
        *("test/cut/Four.jpg", "test/cut/005.png"),
        *("ground_truth/cut/001_mask.PNG", "ground_truth/cut/002_mask.npy"),
        *("ground_truth/cut/003.TIFF", "ground_truth/cut/FOUR_Mask.Png"),
        "ground_truth/cut/005_mask.png",
    ):
        picture(base / name)
    (base / "test" / "cut" / "Thumbs.db").write_bytes(b"0")
    (base / "ground_truth" / "cut" / ".001_mask.png").write_bytes(b"0")
    return base


def test_masks_of_other_formats_and_capitals(bottle):
    data = load_mvtec(bottle.parent, "bottle")
    assert [path.name for path in data.train] == ["001.PNG", "002.npy"]
    names = [mask and mask.name for mask in data.masks]
    assert names == [
        *("001_mask.PNG", "002_mask.npy", "003.TIFF", "005_mask.png"),
        *("FOUR_Mask.Png", None),
    ]
    assert data.unmasked == []
    for mask in data.masks[:-1]:
        assert read_mask(mask).sum() == 47


def test_only_the_missing_masks_are_none(bottle):
    (bottle / "ground_truth" / "cut" / "002_mask.npy").unlink()
    with pytest.warns(UserWarning, match="1 of 5 anomalous images have no mask"):
        data = load_mvtec(bottle.parent, "bottle", require_masks=False)
    assert data.unmasked == [1]
    assert [mask is None for mask in data.masks] == [False, True, *[False] * 3, True]
    with pytest.raises(FileNotFoundError, match=r"002\.png has no mask"):
        load_mvtec(bottle.parent, "bottle")


def test_the_nearest_name_of_a_mask_counts(bottle):
    masks = bottle / "ground_truth" / "cut"
    picture(masks / "005_MASK.bmp")
    picture(masks / "005_mask.bmp")
    data = load_mvtec(bottle.parent, "bottle")
    assert data.masks[3].name == "005_mask.png"


TABLE = [
    ["object", "split", "label", "image", "mask"],
    ["nut", "train", "normal", "nut/0.JPG", ""],
    ["nut", "test", "normal", "nut/1.JPG", ""],
    ["nut", "test", "anomaly", "nut/2.JPG", "nut/2.png"],
]


def table(separator=",", newline="\n", quote="", start=b"", encoding="utf-8"):
    lines = [separator.join(f"{quote}{v}{quote}" for v in row) for row in TABLE]
    return start + (newline.join(lines) + newline).encode(encoding)


TABLES = {
    "plain": table(),
    "byte-order mark": table(start=codecs.BOM_UTF8),
    "semicolons": table(";", "\r\n", start=codecs.BOM_UTF8),
    "tabs": table("\t", "\r\n"),
    "quotes": table(",", "\r\n", '"'),
    "UTF-16 with tabs": table(
        "\t", "\r\n", start=codecs.BOM_UTF16_LE, encoding="utf-16-le"
    ),
    "separator named": table(";", "\r\n", start=b"sep=;\r\n"),
    "old Macintosh": table(newline="\r"),
    "spaces and empty rows": table(", ") + b",,,,\n\n",
    "backslashes": table().replace(b"nut/", b"nut\\"),
    "capitals": table().replace(b"object,split,label", b"Object,Split,Label"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_as_spreadsheets_save_them(tmp_path, kind):
    for name in ("0.JPG", "1.JPG", "2.JPG", "2.png"):
        picture(tmp_path / "nut" / name)
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_bytes(TABLES[kind])
    data = load_visa(tmp_path, "nut")
    assert data.train == [tmp_path / "nut" / "0.JPG"]
    assert data.masks == [None, tmp_path / "nut" / "2.png"]
    assert data.y_test.tolist() == [1, -1]


def test_a_table_without_a_column(tmp_path):
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text("object;image\nnut;a.png\n")
    with pytest.raises(ValueError, match=r"1cls\.csv has no column split, label, mask"):
        load_visa(tmp_path, "nut")
    (tmp_path / "split_csv" / "1cls.csv").write_text("")
    with pytest.raises(ValueError, match="has no column"):
        load_visa(tmp_path, "nut")


# Masks ------------------------------------------------------------------------

TRUE = np.zeros(SHAPE, bool)
TRUE[2:4, 1:5] = True


def npy(values, path):
    np.save(path / "mask.npy", values)
    return path / "mask.npy"


def png(values, path):
    Image.fromarray(values).save(path / "mask.PNG")
    return str(path / "mask.PNG")


def tensor(values, path):
    import torch

    return torch.from_numpy(np.array(values))


CONTAINERS = {
    "array": lambda values, path: values,
    "list": lambda values, path: values.tolist(),
    "tuple": lambda values, path: tuple(map(tuple, values.tolist())),
    "tensor": tensor,
    "PIL": lambda values, path: Image.fromarray(values),
    "png": png,
    "npy": npy,
    "channels": lambda values, path: np.dstack([values] * 3),
}
VALUES = {
    "bool": TRUE,
    "0 and 1": TRUE.astype(np.uint8),
    "0 and 255": TRUE.astype(np.uint8) * 255,
    "0 and 7": TRUE.astype(np.uint8) * 7,
    "kinds of defects": TRUE * np.arange(1, 9, dtype=np.uint8),
    "16 bits": TRUE.astype(np.uint16) * 65535,
}
IN_MEMORY = {
    "float 0 and 1": TRUE.astype(float),
    "float32 0 and 255": TRUE.astype(np.float32) * 255,
    "int64 0 and 7": TRUE.astype(np.int64) * 7,
    "float16 0 and 7": TRUE.astype(np.float16) * 7,
}
CASES = [(v, c) for v in VALUES for c in CONTAINERS] + [
    (v, c) for v in IN_MEMORY for c in ("array", "list", "tensor", "npy", "channels")
]
MAPS = TRUE + np.linspace(0, 1, TRUE.size).reshape(SHAPE)


@pytest.mark.parametrize(("values", "container"), CASES)
def test_one_contract_of_masks(values, container, tmp_path):
    import torch

    array = {**VALUES, **IN_MEMORY}[values]
    if container == "tensor" and not hasattr(torch, str(array.dtype)):
        pytest.skip(f"this version of torch has no {array.dtype}")
    mask = CONTAINERS[container](array, tmp_path)
    np.testing.assert_array_equal(read_mask(mask, size=SHAPE), TRUE)
    np.testing.assert_array_equal(read_region(mask), TRUE)
    cells = Regions(None, [mask], 1).inside(0, SHAPE)
    np.testing.assert_array_equal(cells, TRUE)
    # Three axes are several masks to the metric that knows such.
    metrics = (pixel_auroc,) if container == "channels" else (pixel_auroc, spro_score)
    for metric in metrics:
        assert metric([mask, None], [MAPS, MAPS]) == metric([TRUE, None], [MAPS, MAPS])


@pytest.mark.parametrize("value", [0.5, 1.5, np.nan, np.inf, -1.0])
def test_values_that_could_be_read_in_two_ways_are_refused(value, tmp_path):
    values = np.where(TRUE, value, 0)
    for kind in ("array", "list", "tensor", "npy", "channels"):
        mask = CONTAINERS[kind](values, tmp_path)
        for call in (
            lambda m: read_mask(m, where="masks[1]"),
            lambda m: pro_score([None, m], [MAPS, MAPS]),
        ):
            with pytest.raises(ImageError, match=r"^masks\[1\]"):
                call(mask)


def test_palette_alpha_and_orientation_of_masks(tmp_path):
    palette = Image.fromarray(TRUE.astype(np.uint8)).convert("L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([0, 0, 0, 200, 0, 0])
    rgba = Image.fromarray(VALUES["0 and 255"]).convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(VALUES["0 and 255"][::-1, ::-1].copy()).save(
        tmp_path / "turned.png", exif=exif
    )
    for mask in (palette, rgba, np.asarray(rgba), tmp_path / "turned.png"):
        np.testing.assert_array_equal(read_mask(mask), TRUE)
        assert pixel_auroc([mask], [MAPS]) == pixel_auroc([TRUE], [MAPS])


def test_stacks_of_masks_of_every_kind(tmp_path):
    other = np.zeros(SHAPE, bool)
    other[0, 0] = True
    expected = spro_score([np.stack([TRUE, other])], [MAPS])
    for stack in (
        [TRUE, other],
        [png(VALUES["0 and 255"], tmp_path), other.astype(float)],
        [npy(TRUE, tmp_path), Image.fromarray(other)],
        [TRUE.tolist(), other.tolist()],
        tensor(np.stack([TRUE, other]), tmp_path),
    ):
        assert spro_score([stack], [MAPS]) == expected


def test_maps_of_every_kind(tmp_path):
    expected = pro_score([TRUE], [MAPS])
    path = npy(MAPS, tmp_path)
    upper = path.rename(tmp_path / "MAP.NPY")
    for maps in ([upper], [str(upper)], [tensor(MAPS, tmp_path)], tensor([MAPS], None)):
        assert pro_score([TRUE], maps) == expected


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_are_followed(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    assert len(list_images(tmp_path / "linked", nested=True)) == len(NAMES) + 1


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_that_leads_back_ends(folder):
    (folder / "more" / "back").symlink_to(folder)
    found = list_images(folder, nested=True)
    assert found == [*list_images(folder), folder / "more" / "9.png"]

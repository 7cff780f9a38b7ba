"""Small data sets in the published layouts, written into a folder."""

import csv
import json
import pickle
from typing import NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image

SIZE = (48, 40)  # width, height


class Pictures(NamedTuple):
    """Small photographs to write instead of noise."""

    normal: list  # of arrays (height, width, 3)
    anomalous: np.ndarray
    mask: np.ndarray  # what is anomalous of the latter


PICTURES: Pictures | None = None  # tests set it for a while


def photographs(shared):
    """Some bottles, and a broken one with its mask."""
    base = shared / "data/mvtec_bottle_256"

    def small(path, how):
        return np.array(Image.open(path).resize(SIZE, how))

    paths = sorted((base / "train/good").iterdir())[:20]
    smooth, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
    broken = sorted((base / "test/broken_large").iterdir())[0]
    mask = base / "ground_truth/broken_large" / f"{broken.stem}_mask.png"
    return Pictures(
        [small(path, smooth) for path in paths],
        small(broken, smooth),
        small(mask, nearest) > 0,
    )


def anomalous_part():
    """Mask (height, width) of the anomalous pictures."""
    if PICTURES is not None:
        return PICTURES.mask
    mask = np.zeros(SIZE[::-1], bool)
    mask[10:20, 10:20] = True
    return mask


def save(path, value=None, *, defect=False):
    """Save a picture, or the mask of the anomalous ones with one grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(crc32("/".join(path.parts[-3:]).encode()))
    if value is not None:
        pixels = (anomalous_part() * value).astype(np.uint8)
    elif PICTURES is not None:
        chosen = PICTURES.normal[rng.integers(len(PICTURES.normal))]
        pixels = PICTURES.anomalous if defect else chosen
    else:
        pixels = rng.integers(100, 140, (*SIZE[::-1], 3), dtype=np.uint8)
        if defect:
            pixels[anomalous_part()] = 255
    Image.fromarray(pixels).save(path)


def many(folder, n, suffix=".png", *, defect=False, first=0):
    for i in range(first, first + n):
        save(folder / f"{i:03}{suffix}", defect=defect)


def mvtec(base, *, kind="bad_scratch", good="good", suffix=".png"):
    many(base / "train" / good, 4, suffix)
    many(base / "test" / good, 2, suffix)
    many(base / "test" / kind, 2, suffix, defect=True)
    for i in range(2):
        save(base / "ground_truth" / kind / f"{i:03}_mask.png", 255)


def mvtec_ad(root):
    mvtec(root / "bottle")
    mvtec(root / "cable")


def mpdd(root):
    mvtec(root / "tubes")


def btad(root):
    base = root / "01"
    many(base / "train/ok", 4, ".bmp")
    many(base / "test/ok", 2, ".bmp")
    many(base / "test/ko", 2, ".bmp", defect=True)
    for i in range(2):
        save(base / "ground_truth/ko" / f"{i:03}.png", 255)


LOCO_CONFIG = [
    {
        "defect_name": "missing",
        "pixel_value": 255,
        "saturation_threshold": 30,
        "relative_saturation": False,
    },
    {
        "defect_name": "scratch",
        "pixel_value": 254,
        "saturation_threshold": 0.5,
        "relative_saturation": True,
    },
    {
        "defect_name": "large",
        "pixel_value": 253,
        "saturation_threshold": 100000,
        "relative_saturation": False,
    },
]


def mvtec_loco(root):
    base = root / "pushpins"
    for part, n in (("train", 4), ("validation", 3), ("test", 2)):
        many(base / part / "good", n)
    many(base / "test/logical_anomalies", 1, defect=True)
    many(base / "test/structural_anomalies", 1, defect=True)
    truth = base / "ground_truth"
    save(truth / "logical_anomalies/000/000.png", 255)
    save(truth / "logical_anomalies/000/001.png", 254)
    save(truth / "structural_anomalies/000/000.png", 253)
    (base / "defects_config.json").write_text(json.dumps(LOCO_CONFIG))


def mvtec_ad2(root):
    base = root / "vial"
    for part, n in (("train", 4), ("validation", 3), ("test_public", 2)):
        many(base / part / "good", n)
    many(base / "test_public/bad", 2, defect=True)
    for i in range(2):
        save(base / "test_public/ground_truth/bad" / f"{i:03}_mask.png", 255)
    many(base / "test_private", 3)
    many(base / "test_private_mixed", 5)


def visa(root):
    base = root / "nut/Data"
    many(base / "Images/Normal", 8, ".JPG")
    many(base / "Images/Anomaly", 4, ".JPG", defect=True)
    for i in range(4):
        save(base / "Masks/Anomaly" / f"{i:03}.png", 1)
    (root / "split_csv").mkdir()
    splits = {"1cls": (6, 0), "2cls_highshot": (5, 2), "2cls_fewshot": (2, 1)}
    for split, (n_normal, n_anomalous) in splits.items():
        with (root / "split_csv" / f"{split}.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["object", "split", "label", "image", "mask"])
            for i in range(8):
                part = "train" if i < n_normal else "test"
                name = f"nut/Data/Images/Normal/{i:03}.JPG"
                table.writerow(["nut", part, "normal", name, ""])
            for i in range(4):
                part = "train" if i < n_anomalous else "test"
                name = f"nut/Data/Images/Anomaly/{i:03}.JPG"
                mask = f"nut/Data/Masks/Anomaly/{i:03}.png"
                table.writerow(["nut", part, "anomaly", name, mask])


def kolektor(root):
    for k in range(1, 7):
        for part in range(3):
            save(root / f"kos{k:02}" / f"Part{part}.jpg", defect=part == 1)
            save(root / f"kos{k:02}" / f"Part{part}_label.bmp", 255 * (part == 1))


def kolektor2(root):
    for part, n in (("train", 5), ("test", 4)):
        for i in range(n):
            save(root / part / f"{10000 + i}.png", defect=i == 2)
            save(root / part / f"{10000 + i}_GT.png", 255 * (i == 2))
    save(root / "test/10003_GT(copia).png", 0)  # the published copy has such files


def dagm(root):
    for part, n in (("Train", 5), ("Test", 4)):
        for i in range(n):
            save(root / "Class1" / part / f"{i:04}.PNG", defect=i == 1)
        save(root / "Class1" / part / "Label" / "0001_label.PNG", 255)
        (root / "Class1" / part / "Label" / "Labels.txt").write_text("1\n")


def real_iad(root, resolution=256):
    rows = {"train": [], "test": []}
    base = root / f"realiad_{resolution}" / "mint"
    for i in range(6):
        name = f"OK/S{i:04}/mint_{i:04}_OK_C1.jpg"
        save(base / name)
        rows["train" if i < 4 else "test"].append(
            {"category": "mint", "anomaly_class": "OK", "image_path": name}
            | {"mask_path": None}
        )
    for i in range(2):
        name = f"NG/AK/S{i:04}/mint_{i:04}_NG_bad_C1"
        save(base / f"{name}.jpg", defect=True)
        save(base / f"{name}_mask.png", 255)
        rows["test"].append(
            {"category": "mint", "anomaly_class": "AK", "image_path": f"{name}.jpg"}
            | {"mask_path": f"{name}_mask.png"}
        )
    meta = {"pre_transform": [], "normal_class": "OK", "prefix": "mint/"}
    noisy = {"train": [*rows["train"], rows["test"][-1]], "test": rows["test"][:-1]}
    splits = {"realiad_jsons": rows, "realiad_jsons_fuiad_0.1": noisy}
    for split, content in splits.items():
        folder = root / "realiad_jsons" / split
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"meta": meta, **content})
        (folder / "mint.json").write_text(text)


def shanghaitech(root):
    for video in ("01_001", "02_001"):
        many(root / "training/frames" / video, 11, ".jpg")
    width, height = SIZE
    for video in ("01_0014", "02_0128"):
        many(root / "testing/frames" / video, 4, ".jpg")
        many(root / "testing/frames" / video, 3, ".jpg", defect=True, first=4)
        masks = np.zeros((7, height, width), np.uint8)
        masks[4:] = anomalous_part()
        for kind, array in (("pixel", masks), ("frame", masks.any(axis=(1, 2)))):
            folder = root / f"testing/test_{kind}_mask"
            folder.mkdir(exist_ok=True)
            np.save(folder / f"{video}.npy", array.astype(np.uint8))


def cifar10(root, *, binary=False):
    rng = np.random.default_rng(0)
    folder = root / f"cifar-10-batches-{'bin' if binary else 'py'}"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    for name in names:
        rows = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        labels = [i % 10 for i in range(20)]
        if binary:
            content = np.c_[np.array(labels, np.uint8), rows]
            content.tofile(folder / f"{name}.bin")
        else:
            content = {"data": rows, "labels": labels}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))


def own_folder(root):
    many(root / "good", 10)
    many(root / "bad_scratch", 2, defect=True)
    for i in range(2):
        save(root / "masks/bad_scratch" / f"{i:03}_mask.png", 255)


LAYOUTS = {
    "MVTec AD": (mvtec_ad, "bottle"),
    "MPDD": (mpdd, "tubes"),
    "BTAD": (btad, "01"),
    "MVTec LOCO": (mvtec_loco, "pushpins"),
    "MVTec AD 2": (mvtec_ad2, "vial"),
    "VisA": (visa, "nut"),
    "KolektorSDD": (kolektor, None),
    "KolektorSDD2": (kolektor2, None),
    "DAGM": (dagm, "Class1"),
    "Real-IAD": (real_iad, "mint"),
    "ShanghaiTech Campus": (shanghaitech, None),
    "CIFAR-10": (cifar10, "ship"),
    "folder": (own_folder, None),
}

"""Images, labels and masks of a table of `papers.py`, as its protocol has them."""

from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import rotate

SHORT_SIDE, CROP = 256, 224  # pixels, of the papers on feature banks
LARGEST_ANGLE = 10  # degrees, of images that are not aligned
TRAIN, TEST = 0, 1  # streams of random numbers


class Parts(NamedTuple):
    """What a model learns from, and what it is tested on."""

    train: Any
    y: np.ndarray | None  # with anomalous images only
    masks: list | None
    test: Any
    y_test: np.ndarray
    test_masks: list | None
    cropped: bool  # whether images are crops already


def parts(table, row, preset, data, seed):
    """Images to learn from and to test, resized and cropped as in the paper."""
    train, y, masks, learned = training(row, data, seed)
    test, y_test, test_masks = tested(data, learned)
    if len(set(y_test)) < 2:
        raise SystemExit(
            f"{data.category}: the test part has one class of images only."
        )
    crops = preset.features is not None and "crop_size" in preset.features
    if table.protocol == "misaligned":
        train = misaligned(train, seed, TRAIN)
        test = misaligned(test, seed, TEST)
        test_masks = misaligned_masks(test_masks, seed, TEST)
    elif crops and test_masks is not None:
        train, test, test_masks = frame(train), frame(test), frame_masks(test_masks)
    else:  # without masks, the crop is left to the features
        crops = False
    return Parts(train, y, masks, test, y_test, test_masks, crops)


def training(row, data, seed):
    """Images to learn from, and the positions of test images among them.

    Anomalous images are those that the data set has for training; of a data set without
    any they are test images, of which at least half are left to test.
    """
    rng = np.random.default_rng(seed)
    train = sample(list(data.train), row.shots, rng)
    if row.anomalies == 0:
        return train, None, None, set()
    if len(data.anomalous):
        n, learned = len(data.anomalous), set()
        chosen = sample(range(n), row.anomalies, rng)
        more = [data.anomalous[i] for i in chosen]
        known = [data.anomalous_masks and data.anomalous_masks[i] for i in chosen]
    else:
        found = [i for i in np.flatnonzero(data.y_test == -1) if i not in data.unmasked]
        most = len(found) // 2 if row.anomalies is None else row.anomalies
        chosen = sample(found, min(most, len(found) // 2), rng)
        learned = set(chosen)
        more = [data.test[i] for i in chosen]
        known = [data.masks and data.masks[i] for i in chosen]
    y = np.repeat([1, -1], [len(train), len(more)])
    return train + more, y, [None] * len(train) + known, learned


def sample(items, n, rng):
    """So many of the items, or all where there are no more, in their order."""
    if n is None or n >= len(items):
        return list(items)
    chosen = rng.choice(len(items), n, replace=False)
    return [items[i] for i in np.sort(chosen)]


def tested(data, learned):
    """Test images, their labels and masks, without those that were learned from."""
    left_out = learned | (set(data.unmasked) if data.masks is not None else set())
    kept = [i for i in range(len(data.test)) if i not in left_out]
    masks = None if data.masks is None else [data.masks[i] for i in kept]
    return [data.test[i] for i in kept], data.y_test[kept], masks


def frame(images):
    """Resize the short side and cut out the centre, as the papers do."""
    return [crop(image) for image in resized(images)]


def frame_masks(masks):
    """Do the same with masks."""
    if masks is None:
        return None
    return [None if mask is None else crop(mask) for mask in resized_masks(masks)]


def misaligned(images, seed, stream):
    """Resize the short side, rotate a little, and cut out a window anywhere."""
    return [
        moved(image, movement(seed, stream, i), order=1)
        for i, image in enumerate(resized(images))
    ]


def misaligned_masks(masks, seed, stream):
    """Do the same with the masks of these images."""
    if masks is None:
        return None
    return [
        None if mask is None else moved(mask, movement(seed, stream, i), order=0)
        for i, mask in enumerate(resized_masks(masks))
    ]


def movement(seed, stream, i):
    """Angle in degrees of an image, and the place of its window as two shares."""
    angle, *place = np.random.default_rng([seed, stream, i]).random(3)
    return LARGEST_ANGLE * (2 * angle - 1), place


def moved(pixels, movement, *, order):
    angle, place = movement
    turned = rotate(pixels, angle, axes=(1, 0), reshape=False, order=order)
    free = np.array(pixels.shape[:2]) - CROP + 1
    top, left = (free * place).astype(int)
    return turned[top : top + CROP, left : left + CROP]


def resized(images):
    """Images one by one, in normal form, their short side as in the papers."""
    from skad.images import read_image, resize_image, resize_short_side

    for image in images:
        pixels = read_image(image)
        yield resize_image(pixels, resize_short_side(pixels.shape[:2], SHORT_SIDE))


def resized_masks(masks):
    """Masks one by one, resized to nearest neighbours."""
    from skad.images import read_mask, resize_image, resize_short_side

    for mask in masks:
        if mask is None:
            yield None
            continue
        pixels = read_mask(mask)[..., None].astype(np.uint8)
        size = resize_short_side(pixels.shape[:2], SHORT_SIDE)
        yield resize_image(pixels, size, resample="nearest")[..., 0].astype(bool)


def crop(pixels):
    from skad.images import center_crop_box

    top, left = center_crop_box(pixels.shape[:2], CROP)
    return pixels[top : top + CROP, left : left + CROP]

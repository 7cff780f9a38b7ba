import tracemalloc
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, label
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)

from skad.metrics import (
    aupimo_score,
    pixel_auroc,
    pixel_average_precision,
    pixel_f1_max,
    pixel_metrics,
    pro_score,
    spro_score,
)


def scene(seed, n=5, shape=(30, 24), levels=None):
    """Smooth maps with blobs of defects; `levels` makes heavy ties."""
    rng = np.random.default_rng(seed)
    masks = gaussian_filter(rng.normal(size=(n, *shape)), (0, 2, 2)) > 0.22
    masks[0] = False
    masks[1, 2:6, 3:9] = True
    maps = gaussian_filter(rng.normal(size=(n, *shape)), (0, 2, 2)) + 0.2 * masks
    maps = maps.astype(np.float32)
    if levels:
        maps = np.round(maps * levels) / levels
    return masks, maps


def curve_pro(masks, maps, limit, saturation=None):
    """PRO by thresholding at every distinct score, straight from the definition."""
    regions = []
    for i, mask in enumerate(masks):
        components, n = label(mask, np.ones((3, 3)))
        regions += [(i, components == c) for c in range(1, n + 1)]
    thresholds = np.unique(maps)[::-1]
    fpr, pro = [0.0], [0.0]
    for t in thresholds:
        above = maps >= t
        fpr.append(above[~masks].mean())
        overlaps = []
        for i, region in regions:
            area = region.sum() if saturation is None else min(saturation, region.sum())
            overlaps.append(min(above[i][region].sum() / area, 1))
        pro.append(np.mean(overlaps))
    grid = np.unique(np.append(fpr, limit))
    grid = grid[grid <= limit]
    # Of several points at one FPR the last one ends the vertical step.
    last = dict(zip(fpr, pro, strict=True))
    first = {}
    for f, p in zip(fpr, pro, strict=True):
        first.setdefault(f, p)
    area = 0.0
    xs = sorted(last)
    for a, b in pairwise(xs):
        stop = min(b, limit)
        if stop <= a:
            break
        at_stop = last[a] + (first[b] - last[a]) * (stop - a) / (b - a)
        area += (last[a] + at_stop) / 2 * (stop - a)
    return area / limit


@pytest.mark.parametrize("levels", [None, 50, 4])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_scikit_learn(seed, levels):
    masks, maps = scene(seed, levels=levels)
    flat, scores = masks.ravel(), maps.ravel()
    assert pixel_auroc(masks, maps) == pytest.approx(
        roc_auc_score(flat, scores), abs=1e-9
    )
    assert pixel_average_precision(masks, maps) == pytest.approx(
        average_precision_score(flat, scores), abs=1e-9
    )
    precision, recall, _ = precision_recall_curve(flat, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert pixel_f1_max(masks, maps) == pytest.approx(f1.max(), abs=1e-9)


@pytest.mark.parametrize("levels", [None, 50, 4])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_pro_equals_its_definition(limit, levels):
    masks, maps = scene(7, levels=levels)
    assert pro_score(masks, maps, max_fpr=limit) == pytest.approx(
        curve_pro(masks, maps, limit), abs=1e-9
    )


def test_everything_at_once_equals_one_by_one():
    masks, maps = scene(1)
    result = pixel_metrics(masks, maps)
    for function in (
        pixel_auroc,
        pixel_average_precision,
        pixel_f1_max,
        pro_score,
    ):
        assert result[function.__name__] == pytest.approx(
            function(masks, maps), abs=1e-12
        )


@given(st.integers(0, 1000), st.sampled_from([None, 5]))
def test_a_monotone_change_of_scores_changes_nothing(seed, levels):
    masks, maps = scene(seed, n=3, shape=(12, 12), levels=levels)
    stretched = np.arctan(maps.astype(np.float64)) * 3 + 5
    for metric in (pixel_auroc, pixel_average_precision, pixel_f1_max, pro_score):
        assert metric(masks, stretched) == pytest.approx(metric(masks, maps), abs=1e-9)


@given(st.integers(0, 1000))
def test_the_order_of_images_does_not_matter(seed):
    masks, maps = scene(seed, n=4, shape=(12, 12), levels=8)
    order = np.random.default_rng(seed).permutation(4)
    first, second = pixel_metrics(masks, maps), pixel_metrics(masks[order], maps[order])
    for name, value in first.items():
        assert second[name] == pytest.approx(value, abs=1e-12, nan_ok=True)


def test_containers_and_sizes_may_differ(tmp_path):
    from PIL import Image

    masks, maps = scene(3)
    expected = pixel_metrics(masks, maps)
    path = tmp_path / "mask.png"
    Image.fromarray(masks[2].astype(np.uint8) * 255).save(path)
    as_list = [None, masks[1], path, str(path), masks[4]]
    masks[3] = masks[2]
    expected = pixel_metrics(masks, maps)
    result = pixel_metrics(as_list, list(maps))
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-12)
    tall = [None, np.vstack([masks[1], masks[1]])]
    tall_maps = [maps[0], np.vstack([maps[1], maps[1]])]
    assert 0 <= pixel_auroc(tall, tall_maps) <= 1


def test_spro_saturates():
    masks, maps = scene(2)
    one_region = np.zeros_like(masks)
    one_region[1, 2:8, 3:9] = True
    plain = spro_score(one_region, maps, max_fpr=0.3)
    assert plain == pytest.approx(pro_score(one_region, maps, max_fpr=0.3), abs=1e-9)


def test_aupimo_of_a_perfect_map_is_one():
    masks, _ = scene(0)
    maps = masks.astype(float)
    assert aupimo_score(masks, maps) == pytest.approx(1)


def test_no_defect_is_undefined():
    _, maps = scene(0)
    for metric in (pixel_auroc, pixel_average_precision, pixel_f1_max, pro_score):
        with pytest.warns(UndefinedMetricWarning):
            assert np.isnan(metric(np.zeros(maps.shape, bool), maps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks, maps: (masks, maps[:-1]), "masks|maps"),
        (lambda masks, maps: (masks[:, :-1], maps), "masks|maps"),
        (lambda masks, maps: (masks, np.full_like(maps, np.nan)), "NaN|nan|finite"),
        (lambda masks, maps: (masks[0], maps[0]), "masks|maps"),
        (lambda masks, maps: (masks[:0], maps[:0]), "masks|maps"),
        (lambda masks, maps: (masks, maps.astype(str)), "maps"),
        (lambda masks, maps: (maps, maps), "masks"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        pixel_auroc(*change(*scene(0)))


@pytest.mark.parametrize("limit", [0, -1, 1.5, np.nan])
def test_bad_limit_is_named(limit):
    with pytest.raises(ValueError, match="max_fpr"):
        pro_score(*scene(0), max_fpr=limit)


class Fetched(Sequence):
    """Maps that exist only while they are looked at."""

    def __init__(self, make, n):
        self.make, self.n = make, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        return self.make(i)


def test_maps_from_files_and_on_demand_give_the_same(tmp_path):
    masks, maps = scene(3)
    files = []
    for i, array in enumerate(maps):
        files.append(tmp_path / f"{i}.npy")
        np.save(files[-1], array)
    fetched = Fetched(lambda i: maps[i].astype(float if i == 2 else np.float32), 5)
    for metric in (
        pixel_metrics,
        pixel_auroc,
        pro_score,
        spro_score,
        lambda *pair: aupimo_score(*pair, average=None),
    ):
        expected = metric(masks, maps)
        for other in (files, [str(files[0]), *maps[1:]], fetched):
            np.testing.assert_equal(metric(masks, other), expected)


def test_fetched_maps_need_memory_for_one_image(tmp_path):
    from PIL import Image

    mask = np.zeros((1024, 1024), bool)
    mask[:8, :8] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")

    def noise(i):
        return np.random.default_rng(i).random((1024, 1024), dtype=np.float32)

    def peak(n):
        masks = [tmp_path / "mask.png" if i % 2 else None for i in range(n)]
        tracemalloc.start()
        pixel_metrics(masks, Fetched(noise, n))
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    image = 4 * 2**20
    peak(2)  # imports count once
    assert peak(18) < peak(8) + 0.1 * image
    assert peak(8) < 6 * image


def test_bad_map_files(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match=r"maps\[0\] .*\.npy file; cannot read .*gone"):
        pixel_auroc(None, [tmp_path / "gone.npy"])
    with pytest.raises(ValueError, match=r"maps\[1\] .* cannot read .*text\.npy"):
        pixel_auroc(None, [np.zeros((2, 2)), str(tmp_path / "text.npy")])

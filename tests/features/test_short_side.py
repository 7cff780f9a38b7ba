"""resize="short": the aspect ratio of each image stays, and its centre is looked at."""

import numpy as np
import pytest

import skad
from skad.features._tiled import TiledFeatures
from skad.images import (
    center_crop_box,
    image_size,
    read_image,
    resize_image,
    resize_short_side,
)
from skad.inspection import explain

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]
SHORT, CROP = 64, (56, 48)


class Teaching:
    def fit(self, images):
        skad.detectors.distill_teacher(features(crop_size=None), images)


def features(**options):
    options = {"image_size": SHORT, "crop_size": CROP, "resize": "short", **options}
    return skad.PatchFeatures("skad_small", "auto", **options)


def framed(file):
    """What is looked at, cut out beforehand; and where it lies in the image."""
    image = read_image(file)
    size = resize_short_side(image.shape[:2], SHORT)
    top, left = center_crop_box(size, CROP)
    small = resize_image(image, size)[top : top + CROP[0], left : left + CROP[1]]
    edges = np.array([[top, top + CROP[0]], [left, left + CROP[1]]])
    return small, edges / np.array(size)[:, None]


@pytest.fixture(scope="module")
def tiles(few_photographs):
    """Photographs of many sizes, wide and tall ones, good ones first."""
    files = sorted((few_photographs / "magnetic_tile/train/good").iterdir())
    tall = [f for f in files if np.subtract(*image_size(f)) > 0]
    assert 5 < len(tall) < 30
    return files


@pytest.fixture(scope="module")
def model(tiles):
    return skad.make_pipeline(features(), skad.PatchCoreDetector(0.05)).fit(tiles[:30])


def test_it_reads_as_the_published_code_of_patchcore(golden):
    g = golden("preprocess")
    short, crop = int(g["resize"]), int(g["crop"])
    options = {"image_size": short, "crop_size": crop, "resize": "short"}
    read = skad.PatchFeatures("skad_small", **options)._reader([g["image_u8"]]).read(0)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    found = ((read - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(found, g["patchcore_input"], atol=1.01 / 255 / 0.224)


def test_features_are_those_of_images_framed_beforehand(tiles):
    small = [framed(file)[0] for file in tiles[:8]]
    expected = features(image_size=CROP, crop_size=None, resize="exact")
    found = features().fit_transform(tiles[:8])
    np.testing.assert_array_equal(found, expected.fit_transform(small))
    square = features(crop_size=None).fit(tiles[:1])
    assert square._input_size() == (SHORT, SHORT)


def test_maps_lie_where_the_window_does(model, tiles):
    maps = model.anomaly_map(tiles[30:])
    masks = model.predict_mask(tiles[30:])
    assert [m.shape for m in maps] == [image_size(file) for file in tiles[30:]]
    assert {m.shape[0] < m.shape[1] for m in maps} == {True, False}
    detector, grids = model[-1], model[-1].anomaly_map(model[0].transform(tiles[30:]))
    for file, grid, full, mask in zip(tiles[30:], grids, maps, masks, strict=True):
        window = framed(file)[1]
        np.testing.assert_allclose(model[0].window(full.shape), window)
        threshold = model.pixel_threshold(full.shape)
        np.testing.assert_array_equal(mask, full > threshold)
        rows, columns = ((np.arange(n) + 0.5) / n * np.ones(1) for n in full.shape)
        outside = ~(
            ((rows >= window[0, 0]) & (rows < window[0, 1]))[:, None]
            & ((columns >= window[1, 0]) & (columns < window[1, 1]))
        )
        np.testing.assert_array_equal(full[outside], grid.min())
        inside = full[~outside].reshape(-1, (~outside).any(axis=0).sum())
        # Where an edge of the window lies inside of a pixel, values move a little.
        expected = detector._render(grid[None], inside.shape)[0]
        np.testing.assert_allclose(inside, expected, rtol=0.01)


def test_maps_of_one_size_keep_the_window_of_each_image(model, tiles):
    size = (50, 70)
    maps = model.anomaly_map(tiles[30:36], size)
    assert maps.shape == (6, *size)
    grids = model[-1].anomaly_map(model[0].transform(tiles[30:36]))
    masks = model.predict_mask(tiles[30:36], size)
    found = list(skad.inspect(model, tiles[30:36], size=size))
    for i, file in enumerate(tiles[30:36]):
        window = model[0].window(image_size(file))
        expected = model[-1]._render(grids[i][None], size, window)[0]
        np.testing.assert_allclose(maps[i], expected, atol=1e-5)
        threshold = model[-1].pixel_threshold(size, window=window)
        np.testing.assert_array_equal(masks[i], maps[i] > threshold)
        np.testing.assert_array_equal(found[i].mask, masks[i])


def test_defects_are_where_they_are_in_the_image(model, tiles):
    """A bright spot in a wide and in a tall photograph, near an end of the window."""
    images, spots = [], []
    for file in tiles[30:36]:
        image, window = read_image(file).copy(), framed(file)[1]
        places = (window @ [0.3, 0.7] * image.shape[:2]).astype(int)
        half = min(image.shape[:2]) // 7
        stripes = np.indices((2 * half, 2 * half)).sum(axis=0) % 20 < 10
        spot = tuple(slice(p - half, p + half) for p in places)
        image[spot] = 255 * stripes[..., None]
        images.append(image)
        spots.append(places)
    found = list(skad.inspect(model, images))
    explained = explain(model, images)
    for one, other, spot in zip(found, explained, spots, strict=True):
        assert one.label == -1
        top, left, bottom, right = max(one.defects, key=lambda d: d.peak).bbox
        assert top <= spot[0] < bottom
        assert left <= spot[1] < right
        middle = np.array([other.bbox[:2], other.bbox[2:]]).mean(axis=0)
        assert np.abs(middle - spot).max() < min(one.mask.shape) / 4
        assert other.training_region is None
    maps = model.anomaly_map(images)
    for full, one in zip(maps, found, strict=True):
        np.testing.assert_array_equal(full, one.anomaly_map)


@pytest.mark.parametrize("cached", [False, True])
def test_a_region_is_stretched_over_each_image(tiles, tmp_path, cached):
    mask = np.zeros((10, 10), bool)
    mask[:, 4:] = True
    cache = {"cache_dir": tmp_path} if cached else {}
    transformer = features(region=mask, **cache).fit(tiles[:6])
    for _ in range(1 + cached):
        outside = np.isnan(transformer.transform(tiles[:6])[..., 0])
    for file, cells in zip(tiles[:6], outside, strict=True):
        (_, _), (left, right) = framed(file)[1]
        n = cells.shape[1]
        ends = left + (right - left) * np.arange(n + 1) / n
        expected = (ends[1:] - 0.4).clip(0) / (ends[1:] - ends[:-1]) < 0.5
        certain = np.abs((ends[1:] - 0.4) / (ends[1:] - ends[:-1]) - 0.5) > 0.1
        for row in cells:
            np.testing.assert_array_equal(row[certain], expected[certain])


def test_principal_axes_are_those_of_the_region(tiles):
    mask = np.zeros((10, 10), bool)
    mask[:, 4:] = True
    found = features(region=mask, n_components=8, reduction="pca").fit(tiles[:6])
    rows = features(region=mask).fit_transform(tiles[:6])
    rows = rows[np.isfinite(rows[..., 0])]
    np.testing.assert_allclose(found._centre, rows.mean(axis=0), atol=1e-4)


def test_a_file_of_save_and_a_search_keep_it(model, tiles, tmp_path):
    pytest.importorskip("skops", reason='needs pip install "skad[line]"')
    skad.save(model, tmp_path / "tiles.skad")
    loaded = skad.load(tmp_path / "tiles.skad")
    for known, found in zip(
        model.anomaly_map(tiles[30:33]), loaded.anomaly_map(tiles[30:33]), strict=True
    ):
        np.testing.assert_array_equal(found, known)


def test_both_of_fused_features_see_the_same(tiles):
    fused = skad.FusedFeatures(features())
    assert fused.resize == "short"
    assert fused._members()[1].resize == "short"
    second = skad.PCANetFeatures(
        SHORT, crop_size=CROP, resize="short", kernel_sizes=(5,), n_filters=(4,)
    )
    found = fused.set_params(second=second).fit_transform(tiles[:6])
    alone = features().fit_transform(tiles[:6]).reshape(-1, 128)
    np.testing.assert_allclose(
        np.corrcoef(alone[:, 5], found.reshape(len(alone), -1)[:, 5])[0, 1], 1
    )
    with pytest.raises(ValueError, match="resize='short', second"):
        skad.FusedFeatures(features(), skad.PCANetFeatures(SHORT, crop_size=CROP)).fit(
            tiles[:6]
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: features(image_size=(64, 64)), "image_size=.*this is one number"),
        (lambda: features(crop_size=65), "crop_size=65 exceeds"),
        (lambda: features(resize="long"), "resize"),
        (lambda: TiledFeatures(features()), "features has resize='short'"),
        (Teaching, "resize='short', which cuts off"),
    ],
)
def test_what_does_not_go_together_is_named(tiles, make, message):
    with pytest.raises(ValueError, match=message):
        make().fit(tiles[:2])


def test_the_window_needs_the_size_of_an_image():
    with pytest.raises(ValueError, match=r"pass its size=\(height, width\)"):
        features().window()
    assert features(resize="exact").window() == features().window((64, 64))


@pytest.mark.slow
def test_a_graph_keeps_it(tiles, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch = pytest.importorskip("torch", minversion="2.9")
    from skad.export import OnnxDetector, to_onnx

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 8, stride=8))
    mask = np.zeros((10, 10), bool)
    mask[2:, 3:] = True
    options = {"layers": ("0",), "backbone": network, "region": mask}
    images = [resize_image(read_image(file), (60, 100)) for file in tiles]
    transformer = features().set_params(**options, embedding="concat")
    model = skad.make_pipeline(transformer, skad.PatchCoreDetector()).fit(images[:16])
    to_onnx(model, tmp_path / "tiles.onnx", check=images[16:30])
    graph = OnnxDetector(tmp_path / "tiles.onnx", n_threads=1)
    known, found = model.anomaly_map(images[30:]), graph.anomaly_map(images[30:])
    np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-5)
    masks = model.predict_mask(images)
    np.testing.assert_array_equal(graph.predict_mask(images), masks)
    assert graph.metadata["skad_resize"] == "short"

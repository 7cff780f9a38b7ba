import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from skad._maps import render


def test_golden(golden):
    g = golden("patchcore_map")
    for name, tolerance in (("l2", 2e-5), ("sq", 3e-4)):
        grids = g[f"patch_score_{name}"]
        key = "map_l2_112" if name == "l2" else "map_reference_sq_112"
        np.testing.assert_allclose(
            render(grids, (112, 112), sigma=float(g["sigma"])),
            g[key],
            atol=tolerance,
            rtol=1e-5,
        )
    np.testing.assert_allclose(
        render(g["patch_score_l2"], (60, 90)), g["map_l2_60x90"], atol=2e-5
    )


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.0, 0.7, 4.0]),
)
def test_equals_torch_and_scipy(grid, size, sigma):
    import torch

    grids = np.random.default_rng(0).random((2, *grid)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(grids)[:, None], size=size, mode="bilinear"
    )[:, 0].numpy()
    if sigma:
        expected = np.stack([gaussian_filter(m.astype(float), sigma) for m in expected])
    np.testing.assert_allclose(render(grids, size, sigma=sigma), expected, atol=1e-5)


@given(st.integers(1, 300), st.integers(1, 300))
def test_stays_within_the_range_of_its_grid(height, width):
    grids = np.random.default_rng(height).random((1, 7, 5))
    maps = render(grids, (height, width))
    assert maps.shape == (1, height, width)
    assert maps.min() >= grids.min() - 1e-5
    assert maps.max() <= grids.max() + 1e-5


def test_a_window_puts_the_grid_where_it_was_cut():
    grids = np.arange(16.0).reshape(1, 4, 4) + 5
    maps = render(grids, (80, 80), sigma=0, window=((0.25, 0.75), (0.25, 0.75)))
    np.testing.assert_allclose(maps[:, 20:60, 20:60], render(grids, (40, 40), sigma=0))
    outside = np.ones((80, 80), bool)
    outside[20:60, 20:60] = False
    np.testing.assert_array_equal(maps[0][outside], 5)


def test_a_skipped_image_stays_unknown_and_alone():
    grids = np.ones((2, 3, 3))
    grids[0] = np.nan
    maps = render(grids, (9, 9))
    assert np.isnan(maps[0]).all()
    np.testing.assert_allclose(maps[1], 1, rtol=1e-6)


@pytest.mark.parametrize("window", [((0.5, 0.501), (0, 1)), ((0, 1), (0.999, 1))])
def test_a_window_thinner_than_a_pixel(window):
    assert np.isfinite(render(np.ones((1, 2, 2)), (10, 10), window=window)).all()

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skad.networks._embedding import concat, mean, mean1d, replicate


@pytest.fixture
def levels(golden):
    import torch

    g = golden("patchcore_embed")
    return g, [torch.from_numpy(g[name]) for name in ("layer2", "layer3")]


def rows(embedded):
    return embedded.permute(0, 2, 3, 1).flatten(0, 2).numpy()


@pytest.mark.parametrize(
    ("key", "patch_size", "pretrain_dim"),
    [("embedding", 3, 128), ("embedding_p5", 5, 128), ("embedding_96_96", 3, 96)],
)
def test_golden_mean1d(levels, key, patch_size, pretrain_dim):
    g, maps = levels
    embedded = mean1d(maps, (14, 14), patch_size, pretrain_dim, 96)
    np.testing.assert_allclose(rows(embedded), g[key], atol=2e-6)


def test_golden_mean1d_in_float64(levels):
    g, maps = levels
    embedded = mean1d([m.double() for m in maps], (14, 14), 3, 128, 96)
    np.testing.assert_allclose(rows(embedded), g["embedding_f64"], atol=1e-12)


def test_golden_concat(levels):
    g, maps = levels
    np.testing.assert_allclose(
        rows(concat(maps, (14, 14), 3)), g["embedding_channelwise"], atol=2e-6
    )


@given(
    st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]), st.integers(1, 40)
)
def test_mean1d_pools_as_torch_does(channels, more, patch_size, dim):
    import torch
    from torch.nn.functional import adaptive_avg_pool1d, unfold

    generator = torch.Generator().manual_seed(channels)
    maps = [torch.rand((1, c, 4, 5), generator=generator) for c in (channels, more)]
    patches = [
        unfold(m, patch_size, padding=patch_size // 2).transpose(1, 2) for m in maps
    ]
    pooled = torch.cat([adaptive_avg_pool1d(p, dim) for p in patches], dim=2)
    expected = adaptive_avg_pool1d(pooled, 7)[0]
    np.testing.assert_allclose(
        rows(mean1d(maps, (4, 5), patch_size, dim, 7)), expected, atol=1e-5
    )


@pytest.mark.parametrize(("patch_size", "stride"), [(3, 2), (5, 3), (1, 2)])
def test_strides_are_those_of_the_published_code(patch_size, stride):
    """Patches are unfolded, resized as maps of patches, and pooled twice."""
    import torch
    from torch.nn.functional import adaptive_avg_pool1d, interpolate, unfold

    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand((2, 4, 9, 12), generator=generator)]
    maps.append(torch.rand((2, 6, 5, 6), generator=generator))
    grids = [tuple((s - 1) // stride + 1 for s in level.shape[2:]) for level in maps]
    pooled, averages = [], []
    for level, grid in zip(maps, grids, strict=True):
        patches = unfold(level, patch_size, padding=patch_size // 2, stride=stride)
        patches = patches.reshape(2, -1, *grid)
        patches = interpolate(patches, size=grids[0], mode="bilinear")
        patches = patches.flatten(2).transpose(1, 2).flatten(0, 1)
        pooled.append(adaptive_avg_pool1d(patches, 8))
        averages.append(patches.reshape(-1, level.shape[1], patch_size**2).mean(2))
    expected = adaptive_avg_pool1d(torch.cat(pooled, dim=1), 8)
    found = mean1d(maps, grids[0], patch_size, 8, 8, stride)
    np.testing.assert_allclose(rows(found), expected, atol=1e-6)
    found = rows(concat(maps, grids[0], patch_size, stride))
    np.testing.assert_allclose(found, torch.cat(averages, dim=1), atol=1e-6)


def test_mean_is_that_of_the_levels():
    import torch

    maps = [torch.rand(2, 3, 4, 5) for _ in range(3)]
    parts = rows(concat(maps, (4, 5), 3)).reshape(-1, 3, 3)
    np.testing.assert_allclose(rows(mean(maps, (4, 5), 3)), parts.mean(1), atol=1e-6)


def test_replicate_repeats_coarse_levels():
    import torch

    fine, coarse = torch.rand(1, 2, 4, 4), torch.rand(1, 3, 2, 2)
    embedded = replicate([fine, coarse], (4, 4))
    np.testing.assert_array_equal(embedded[:, :2], fine)
    np.testing.assert_array_equal(
        embedded[:, 2:], coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    )

"""Outputs of a network are read where they belong in the image, or refused."""

import numpy as np
import pytest
import torch
from torch import nn

from skad import PatchCoreDetector, PatchFeatures, Pipeline, SPDPatchFeatures
from skad.networks import _layout


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


def fitted(backbone, layers, size=64, **parameters):
    """Features fitted on noise of a size."""
    height, width = (size, size) if isinstance(size, int) else size
    X = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    parameters = {"embedding": "concat", "patch_size": 1, **parameters}
    features = PatchFeatures(backbone, layers, image_size=(height, width), **parameters)
    return features.fit(X), X


def centre_of_change(features, X, rows, columns):
    """Where features change most when a part of the image does, as fractions."""
    changed = X.copy()
    changed[:, rows, columns] = 255 - changed[:, rows, columns]
    before, after = (np.asarray(features.transform(x)) for x in (X, changed))
    reaction = np.abs(after - before).mean(axis=(0, 3))
    row, column = np.unravel_index(reaction.argmax(), reaction.shape)
    grid = np.array(features.grid_shape_)
    return (np.array([row, column]) + 0.5) / grid


def check_positions(features, X):
    height, width = X.shape[1:3]
    for row in (0.125, 0.875):
        for column in (0.125, 0.875):
            rows, columns = (
                slice(round(side * (at - 0.125)), round(side * (at + 0.125)))
                for side, at in ((height, row), (width, column))
            )
            found = centre_of_change(features, X, rows, columns)
            assert np.abs(found - (row, column)).max() <= 0.26


class Tokens(nn.Module):
    """A transformer without attention, with extra tokens where one wants them."""

    def __init__(self, before=0, after=0, order="NLC", shuffled=False, patch=16):
        super().__init__()
        self.before, self.after, self.order = before, after, order
        self.shuffled = shuffled
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 12, patch, stride=patch)
        self.block = nn.Identity()
        self.extra = nn.Parameter(torch.randn(1, before + after, 12))

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        if self.shuffled:
            x = x[:, np.random.default_rng(0).permutation(x.shape[1])]
        extra = self.extra.expand(len(x), -1, -1)
        x = torch.cat([extra[:, : self.before], x, extra[:, self.before :]], dim=1)
        return self.block(x if self.order == "NLC" else x.transpose(1, 2))


@pytest.mark.parametrize(
    ("before", "after", "size", "grid"),
    [
        (1, 0, 64, (4, 4)),
        (0, 1, 64, (4, 4)),
        (5, 0, (80, 160), (5, 10)),
        (0, 5, (80, 160), (5, 10)),
        (2, 0, (160, 80), (10, 5)),
        (4, 0, (64, 96), (4, 6)),
        (0, 0, (48, 112), (3, 7)),
        (1, 0, 224, (14, 14)),
    ],
)
@pytest.mark.parametrize("order", ["NLC", "NCL"])
def test_tokens_of_ones_own_network(before, after, size, grid, order):
    features, X = fitted(Tokens(before, after, order), ("block",), size)
    assert features.grid_shape_ == grid
    assert features.n_features_out_ == 12
    check_positions(features, X)


def test_tokens_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"'block' puts out.*not in the order"):
        fitted(Tokens(shuffled=True), ("block",), 128)


class Maps(nn.Module):
    """Maps of which one can choose the order."""

    def __init__(self, *order, mirrored=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 8, stride=8)
        self.out = nn.Identity()
        self.order, self.mirrored = order, mirrored

    def forward(self, x):
        x = self.conv(x)
        return self.out(x.permute(self.order) if not self.mirrored else x.flip(3))


@pytest.mark.parametrize("size", [64, (64, 96), (64, 128)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_channels_first_or_last(order, size):
    """Also where as many channels as rows leave the shape undecided."""
    features, X = fitted(Maps(*order), ("out",), size)
    assert features.n_features_out_ == 8
    assert features.grid_shape_ == (X.shape[1] // 8, X.shape[2] // 8)
    check_positions(features, X)


@pytest.mark.parametrize("network", [Maps(0, 1, 3, 2), Maps(mirrored=True)])
def test_maps_that_are_turned_or_mirrored_are_refused(network):
    with pytest.raises(ValueError, match="not in the order of the image"):
        fitted(network, ("out",), 96)


def test_the_first_of_several_outputs_is_taken():
    class Several(nn.Module):
        def forward(self, x):
            return x, (x.shape[2], x.shape[3])

    network = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4))
    network.add_module("several", Several())
    network.add_module("end", nn.Identity())
    network.forward = lambda x: network.several(network[0](x))[0]
    features, X = fitted(network, ("several",))
    assert features.grid_shape_ == (16, 16)
    check_positions(features, X)


@pytest.mark.parametrize(
    ("name", "size", "layers", "grid"),
    [
        ("xcit_nano_12_p16_224", 64, "auto", (4, 4)),
        ("deit_tiny_distilled_patch16_224", 64, "auto", (4, 4)),
        ("vit_tiny_patch16_224", (80, 160), ("blocks.3",), (5, 10)),
        ("eva02_tiny_patch14_224", (70, 140), ("blocks.3",), (5, 10)),
        ("vit_small_patch14_reg4_dinov2", (70, 140), ("blocks.1",), (5, 10)),
        ("convit_tiny", 224, ("blocks.1",), (14, 14)),
        ("mobilevit_xxs", 64, "auto", (8, 8)),
        ("pvt_v2_b0", 64, "auto", (8, 8)),
        ("davit_tiny", 64, ("stages.0",), (16, 16)),
        ("mobilenetv2_100", 32, "auto", (4, 4)),
        ("resnet18", 32, ("layer3", "layer4"), (2, 2)),
        ("skad_small", 32, "auto", (4, 4)),
        ("skad_small", (40, 104), "auto", (5, 13)),
    ],
)
def test_networks_of_timm(name, size, layers, grid):
    features, X = fitted(name, layers, size, weights=False)
    assert features.grid_shape_ == grid
    if min(grid) > 4:
        check_positions(features, X)


@pytest.mark.parametrize("layers", ["auto", ("blocks.0",)])
def test_hiera_is_refused(layers):
    """Its tokens come in the order of its windows."""
    with pytest.raises(ValueError, match=r"'blocks\.\d+' puts out.*not in the order"):
        fitted("hiera_tiny_224", layers, 224, weights=False)


@pytest.mark.parametrize("name", ["twins_svt_small"])
def test_names_that_timm_tells_wrongly(name):
    with pytest.raises(ValueError, match="layers='auto': timm tells no modules"):
        fitted(name, "auto", 64, weights=False)


def test_layers_are_measured_once_for_each_network(images):
    runs = []
    network = nn.Sequential(nn.Conv2d(3, 5, 8, stride=8), nn.Identity())
    network[0].register_forward_hook(lambda *_: runs.append(1))
    features = PatchFeatures(network, ("1",), image_size=64)
    features.fit(images)
    first = len(runs)
    assert first <= 8
    PatchFeatures(network, ("1",), image_size=64).fit(images)
    assert len(runs) - first == 1


def test_a_network_that_ignores_the_image_is_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 5, 8, stride=8))
    nn.init.zeros_(network[0].weight)
    features, _ = fitted(network, ("0",))
    assert features.grid_shape_ == (8, 8)


def test_the_agreement_of_maps_is_a_correlation():
    maps = _layout.probes((48, 48), 3).transpose(0, 3, 1, 2)
    assert _layout._agreement(maps) > 0.9
    assert _layout._agreement(maps[..., ::-1]) < -0.9
    assert _layout._agreement(maps.transpose(0, 1, 3, 2)) < 0.1


# -- layers of one's own network -------------------------------------------------------


def own_convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, 3, stride=4, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def test_layers_of_ones_own_network_by_stride(images):
    features = PatchFeatures(own_convnet(), "auto", image_size=64).fit(images)
    assert features.layers_ == ("2", "4")
    assert features.grid_shape_ == (8, 8)
    model = Pipeline([features, PatchCoreDetector()])
    assert model.fit(images).predict(images).shape == (4,)


def test_the_deepest_maps_where_no_stride_is_8_or_16(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.ReLU())
    assert PatchFeatures(network, "auto", image_size=64).fit(images).layers_ == ("1",)


def test_the_advice_on_layers_works(images):
    with pytest.raises(ValueError, match="or layers='auto'"):
        PatchFeatures(own_convnet(), image_size=64).fit(images)
    PatchFeatures(own_convnet(), "auto", image_size=64).fit(images)


def test_a_network_without_maps(images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64 * 64 * 3, 2))
    with pytest.raises(ValueError, match="no module of your network puts out maps"):
        PatchFeatures(network, "auto", image_size=64).fit(images)


# -- images and types that a network cannot take ---------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("skad_small", 8),
        ("vit_tiny_patch16_224", 8),
        ("swin_tiny_patch4_window7_224", 65),
    ],
)
def test_an_image_size_that_does_not_fit_is_named(name, size, images):
    with pytest.raises(ValueError, match=f"image_size={size}"):
        PatchFeatures(name, "auto", weights=False, image_size=size).fit(images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_network_of_another_dtype_computes_in_it(dtype, images):
    single = PatchFeatures(own_convnet(), "auto", image_size=64).fit(images)
    other = PatchFeatures(own_convnet().to(dtype), "auto", image_size=64).fit(images)
    one, two = (np.asarray(f.transform(images)) for f in (single, other))
    assert two.dtype == np.float32
    assert np.abs(one - two).max() < 0.05 * np.abs(one).max()


def test_a_network_of_two_dtypes_is_refused(images):
    network = own_convnet()
    network[3].double()
    with pytest.raises(ValueError, match=r"of 2 dtypes, torch\.float32, torch\.float6"):
        PatchFeatures(network, "auto", image_size=64).fit(images)


def test_fine_tuning_reads_tokens_as_features_do(images):
    features = SPDPatchFeatures(
        Tokens(before=1, patch=8), ("block",), max_steps=1, image_size=64
    ).fit(images)
    assert features.grid_shape_ == (8, 8)

"""Normalizations folded into convolutions change nothing but the time."""

import numpy as np
import pytest
import torch
from torch import nn

from skad import PatchFeatures
from skad.networks._folding import fold_norms


def randomised(module, seed=0):
    """The network with statistics that a normalization does not start with."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.2, 3)
            part.weight.data.uniform_(-2, 2)
            part.bias.data.normal_()
    return module.eval()


def n_norms(module):
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv2_100", "efficientnet_b0", "densenet121"]
)
def test_levels_stay_what_they_were(name):
    import timm

    module = randomised(timm.create_model(name))
    plain = {n: v.clone() for n, v in module.state_dict().items()}
    batch = torch.rand(2, 3, 96, 64)
    with torch.inference_mode():
        before = module.forward_features(batch)
        n_before = n_norms(module)
        assert fold_norms(module, 3, (64, 64))[0] is not None
        after = module.forward_features(batch)
    assert n_norms(module) < 0.6 * n_before
    assert any(
        not torch.equal(v, plain.get(n, v)) for n, v in module.state_dict().items()
    )
    np.testing.assert_allclose(after, before, atol=1e-4 * float(before.abs().max()))


class Shared(nn.Module):
    """A convolution whose plain output is used, too, and a norm used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.norm, self.twice = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.twice(self.first(x))
        return self.twice(self.second(x))


class Reused(Shared):
    def forward(self, x):
        x = self.first(x)
        return self.norm(x) + self.second(x)


def test_a_norm_that_runs_twice_is_left_alone():
    module = randomised(Shared())
    assert fold_norms(module, 3, (8, 8))[0] == frozenset()
    assert n_norms(module) == 2


def test_a_convolution_that_is_used_twice_is_noticed():
    assert fold_norms(randomised(Reused()), 3, (8, 8))[0] is None


def test_a_layer_inside_of_a_folded_pair_keeps_its_output(images):
    import timm

    layers = ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.downsample.0", "layer2")
    features = PatchFeatures("resnet50", layers[:2], weights=False, embedding="concat")
    got = features.fit_transform(images[:2])
    with torch.random.fork_rng():
        torch.manual_seed(features._seed)
        module = timm.create_model("resnet50").eval()
    outputs = {}
    for name in layers:
        module.get_submodule(name).register_forward_hook(
            lambda part, inputs, output, name=name: outputs.update(
                {name: output.clone()}
            )
        )
    batch = next(iter(features._reader(images[:2]).batches(2)))
    with torch.inference_mode():
        module(features._as_input(batch, features._backbone()))
    mean = torch.nn.functional.avg_pool2d
    want = torch.cat([mean(outputs[name], 3, 1, 1) for name in layers[:2]], 1)
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1), atol=1e-4)
    assert n_norms(features._backbone().module) == 53
    usual = features.set_params(layers=("layer2",)).fit(images[:2])
    assert n_norms(usual._backbone().module) == 0

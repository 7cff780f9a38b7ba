import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny_network():
    """A small network of one's own: two levels, then a head."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential()
        network.add_module("early", nn.Conv2d(3, 6, 3, stride=4, padding=1))
        network.add_module("relu", nn.ReLU(inplace=True))
        network.add_module("late", nn.Conv2d(6, 10, 3, stride=2, padding=1))
        network.add_module("head", nn.Identity())
    network.train()
    return network


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8)

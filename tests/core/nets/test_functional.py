"""FlatNet and the ConvNet: the module's own numbers, from one flat vector."""

import pytest
import torch
from torch import nn

from ppdd_core.config import NetConfig
from ppdd_core.nets.convnet import ConvNet, Halve
from ppdd_core.nets.functional import FlatNet, flatten


def test_flat_net_equals_the_module() -> None:
    net = FlatNet(NetConfig(width=6, depth=3), classes=4, image_size=16)
    torch.manual_seed(7)
    module = ConvNet(channels=1, classes=4, image_size=16, width=6, depth=3)
    theta_P = flatten(p.detach() for p in module.parameters())
    x = torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(net(theta_P, x), module(x))
    torch.testing.assert_close(net.features(theta_P, x), module.features(x))


def test_the_convnet_is_that_of_the_paper() -> None:
    """Against the same layers from torch.nn, and the parameter count known for 112 px, grey, 4 classes."""
    torch.manual_seed(0)
    ours = ConvNet(channels=1, classes=4, image_size=112, width=128, depth=5)
    assert sum(p.numel() for p in ours.parameters()) == 597_508
    layers: list[nn.Module] = []
    for block in range(5):
        layers += [
            nn.Conv2d(128 if block else 1, 128, 3, padding=1),
            nn.GroupNorm(128, 128),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    reference = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 9, 4))
    for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
        theirs.data = mine.data
    x = torch.randn(2, 1, 112, 112)
    torch.testing.assert_close(ours(x), reference(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [2, 3, 7, 8])
def test_halve_is_average_pooling(side: int) -> None:
    x = torch.randn(2, 3, side, side + 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(Halve()(x), nn.functional.avg_pool2d(x, 2))
    assert torch.autograd.gradgradcheck(Halve(), (x,))


def test_the_seed_decides_the_initial_parameters_and_leaves_the_global_state_alone() -> None:
    net = FlatNet(NetConfig(width=4, depth=1), classes=2, image_size=8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = net.initial(3), net.initial(3), net.initial(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (net.parameters,)

"""Derivatives by hand against autograd's: float64, odd sizes, several channels, pieces of every size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppdd_core.config import NetConfig
from ppdd_core.nets import convnet_by_hand
from ppdd_core.nets.derivatives import Net, gradient_along, loss_gradient
from ppdd_core.nets.functional import FlatNet

SHAPES = [(1, 16, 2), (1, 22, 3), (3, 13, 2), (1, 8, 1)]  # channels, image size, depth


def drawn(net: FlatNet) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return θ, λ, images and labels; γ and β away from where they begin."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    theta_P = net.initial(0).double() + 0.1 * normal(net.parameters)
    x_BCHW = normal(5, net.channels, net.image_size, net.image_size)
    return theta_P, normal(net.parameters), x_BCHW, torch.tensor([0, 1, 2, 3, 1])


def by_autograd(
    net: Net, given: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    theta_P, lambda_P, x_BCHW, labels_B = given
    theta_P, x_BCHW = theta_P.clone().requires_grad_(True), x_BCHW.clone().requires_grad_(True)
    loss = F.cross_entropy(net(theta_P, x_BCHW), labels_B)
    (grad_P,) = torch.autograd.grad(loss, theta_P, create_graph=True)
    s = grad_P @ lambda_P
    s_x, s_theta = torch.autograd.grad(s, (x_BCHW, theta_P))
    return grad_P.detach(), s.detach(), s_x, s_theta


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def require_autograds(net: Net, given: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    theta_P, lambda_P, x_BCHW, labels_B = given
    grad_P, *along = by_autograd(net, given)
    assert relative(loss_gradient(net, theta_P, x_BCHW, labels_B), grad_P) < 1e-12
    found = gradient_along(net, theta_P, lambda_P, x_BCHW, labels_B)
    for mine, exact in zip(found, along, strict=True):
        assert relative(mine, exact) < 1e-12


@pytest.mark.parametrize(("channels", "size", "depth"), SHAPES)
@pytest.mark.parametrize("piece", [1, 2000, 2**19])
def test_by_hand_is_what_autograd_gives(
    channels: int, size: int, depth: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convnet_by_hand, "PIECE", piece)
    net = FlatNet(NetConfig(width=6, depth=depth), classes=4, image_size=size, channels=channels)
    require_autograds(net, drawn(net))


def test_what_is_no_convnet_has_autograds() -> None:
    net = FlatNet(NetConfig(width=4, depth=2), classes=4, image_size=8)
    given = drawn(net)

    def other(theta_P: Tensor, x_BCHW: Tensor) -> Tensor:
        return net(theta_P, x_BCHW).tanh()  # by hand there is no such thing

    require_autograds(other, given)


def test_what_is_given_is_not_changed() -> None:
    net = FlatNet(NetConfig(width=4, depth=2), classes=4, image_size=8)
    given = drawn(net)
    before = [one.clone() for one in given]
    theta_P, lambda_P, x_BCHW, labels_B = given
    loss_gradient(net, theta_P, x_BCHW, labels_B)
    gradient_along(net, theta_P, lambda_P, x_BCHW, labels_B)
    assert all(
        torch.equal(a, b) and not a.requires_grad for a, b in zip(given, before, strict=True)
    )

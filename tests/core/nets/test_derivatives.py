"""Derivatives by hand against autograd's: float64, odd sizes, several channels, pieces of every size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppdd_core.config import NetConfig
from ppdd_core.nets import convnet_by_hand
from ppdd_core.nets.derivatives import Net, Room, gradient_along, loss_gradient, mean_targets
from ppdd_core.nets.functional import FlatNet

SHAPES = [(1, 16, 2), (1, 22, 3), (3, 13, 2), (1, 8, 1)]  # channels, image size, depth


Given = tuple[Tensor, Tensor, Tensor, Tensor]


def drawn(net: FlatNet) -> Given:
    """Return θ, λ, images and targets; γ and β away from where they begin."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    theta_P = net.initial(0).double() + 0.1 * normal(net.parameters)
    x_BCHW = normal(5, net.channels, net.image_size, net.image_size)
    targets_BK = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    return theta_P, normal(net.parameters), x_BCHW, targets_BK


def by_autograd(net: Net, given: Given) -> tuple[Tensor, ...]:
    """Return ℓ, ∇_θ ℓ, s and its gradients in x, θ and t."""
    theta_P, lambda_P, x_BCHW, targets_BK = given
    asked = [one.clone().requires_grad_(True) for one in (x_BCHW, theta_P, targets_BK)]
    x_BCHW, theta_P, targets_BK = asked
    loss = (-torch.log_softmax(net(theta_P, x_BCHW), 1)).flatten().dot(targets_BK.flatten())
    (grad_P,) = torch.autograd.grad(loss, theta_P, create_graph=True)
    s = grad_P @ lambda_P
    along = torch.autograd.grad(s, asked)
    return loss.detach(), grad_P.detach(), s.detach(), *along


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def require_autograds(net: Net, given: Given, *, keep: bool = False) -> None:
    theta_P, lambda_P, x_BCHW, targets_BK = given
    first = loss_gradient(net, theta_P, x_BCHW, targets_BK, keep=keep)
    along = gradient_along(
        net, theta_P, lambda_P, x_BCHW, targets_BK, kept=first.kept if keep else None
    )
    found = (
        first.loss, first.grad_P, along.s, along.grad_x_BCHW, along.grad_P, along.grad_targets_BK,
    )  # fmt: skip
    for mine, exact in zip(found, by_autograd(net, given), strict=True):
        assert relative(mine, exact) < 1e-12


@pytest.mark.parametrize(("channels", "size", "depth"), SHAPES)
@pytest.mark.parametrize("piece", [1, 2000, 2**19])
@pytest.mark.parametrize("keep", [False, True])
def test_by_hand_is_what_autograd_gives(
    channels: int, size: int, depth: int, piece: int, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convnet_by_hand, "PIECE", piece)
    net = FlatNet(NetConfig(width=6, depth=depth), classes=4, image_size=size, channels=channels)
    require_autograds(net, drawn(net), keep=keep)


def test_what_was_kept_survives_other_steps_in_the_same_room() -> None:
    net, room = FlatNet(NetConfig(width=6, depth=2), classes=4, image_size=16), Room()
    theta_P, lambda_P, x_BCHW, targets_BK = drawn(net)
    kept = loss_gradient(net, theta_P, x_BCHW, targets_BK, room, keep=True).kept
    for keep in (True, False):
        loss_gradient(net, theta_P + 1, x_BCHW + 1, targets_BK, room, keep=keep)
        gradient_along(net, theta_P + 1, lambda_P, x_BCHW + 1, targets_BK, room)
    found = gradient_along(net, theta_P, lambda_P, x_BCHW, targets_BK, room, kept)
    exact = gradient_along(net, theta_P, lambda_P, x_BCHW, targets_BK)
    assert relative(found.grad_x_BCHW, exact.grad_x_BCHW) < 1e-12


@pytest.mark.parametrize("weights_K", [None, torch.tensor([0.2, 1.0, 3.0, 0.5])])
def test_targets_make_the_mean_cross_entropy(weights_K: Tensor | None) -> None:
    logits_BK = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    hard_B, soft_BK = torch.tensor([0, 1, 2, 3, 1]), torch.randn(5, 4).softmax(1)
    for labels, weight in ((hard_B, weights_K), (soft_BK, None)):
        targets_BK = mean_targets(labels, 4, weight)
        loss = -(targets_BK * logits_BK.log_softmax(1)).sum()
        torch.testing.assert_close(loss, F.cross_entropy(logits_BK, labels, weight=weight))


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
    theta_P, lambda_P, x_BCHW, targets_BK = given
    loss_gradient(net, theta_P, x_BCHW, targets_BK)
    gradient_along(net, theta_P, lambda_P, x_BCHW, targets_BK)
    assert all(
        torch.equal(a, b) and not a.requires_grad for a, b in zip(given, before, strict=True)
    )

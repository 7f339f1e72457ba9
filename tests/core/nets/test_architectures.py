"""The networks by name: pure functions of their parameters, with torchvision's convolutions."""

from __future__ import annotations

import pytest
import torch
import torchvision.models
from torch import nn

from ppdd_core.config import Architecture, NetConfig
from ppdd_core.errors import BadConfigError
from ppdd_core.nets.architectures import Backbone, build_module
from ppdd_core.nets.convnet import ConvNet
from ppdd_core.nets.fit import train_epoch
from ppdd_core.nets.functional import FlatNet, flatten

OTHERS: tuple[Architecture, ...] = ("alexnet", "vgg11", "resnet18")
ALL: tuple[Architecture, ...] = ("convnet", *OTHERS)


def config(architecture: Architecture) -> NetConfig:
    return NetConfig(architecture=architecture, width=8, depth=3)


def on_meta(architecture: Architecture, image_size: int, channels: int = 1) -> nn.Module:
    with torch.device("meta"):
        return build_module(
            config(architecture), classes=4, image_size=image_size, channels=channels
        )


@pytest.mark.parametrize("architecture", ALL)
def test_the_flat_network_equals_the_module(architecture: Architecture) -> None:
    torch.manual_seed(1)
    module = build_module(config(architecture), classes=4, image_size=32, channels=1)
    assert isinstance(module, ConvNet | Backbone)
    net = FlatNet(config(architecture), classes=4, image_size=32)
    theta_P = flatten(p.detach() for p in module.parameters())
    x_BCHW = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        logits_BK, features_BD = net(theta_P, x_BCHW), net.features(theta_P, x_BCHW)
        torch.testing.assert_close(logits_BK, module(x_BCHW), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features_BD, module.features(x_BCHW), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits_BK, module.classifier(features_BD), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
def test_every_parameter_and_the_image_get_a_finite_gradient(architecture: Architecture) -> None:
    net = FlatNet(config(architecture), classes=4, image_size=32)
    theta_P = net.initial(3).requires_grad_()
    x_BCHW = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = nn.functional.cross_entropy(net(theta_P, x_BCHW), torch.tensor([0, 3]))
    grad_P, grad_BCHW = torch.autograd.grad(loss, (theta_P, x_BCHW))
    assert grad_P.isfinite().all()
    assert grad_BCHW.isfinite().all()
    assert grad_BCHW.abs().sum() > 0
    for name, part in net.split(grad_P).items():
        assert part.abs().sum() > 0, name


def test_a_second_derivative_flows_to_the_image() -> None:
    net = FlatNet(config("alexnet"), classes=2, image_size=32)
    theta_P = net.initial(3).requires_grad_()
    x_BCHW = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = nn.functional.cross_entropy(net(theta_P, x_BCHW), torch.tensor([0, 1]))
    (grad_P,) = torch.autograd.grad(loss, theta_P, create_graph=True)
    (second_BCHW,) = torch.autograd.grad(grad_P.square().sum(), x_BCHW)
    assert second_BCHW.isfinite().all()
    assert second_BCHW.abs().sum() > 0


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("image_size", [32, 64, 112, 224])
def test_nothing_is_remembered_between_batches_at_any_size(
    architecture: Architecture, image_size: int
) -> None:
    module = on_meta(architecture, image_size)
    assert not list(module.buffers())
    assert module(torch.empty(2, 1, image_size, image_size, device="meta")).shape == (2, 4)


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ("convnet", 7_572),
        ("alexnet", 2_457_540),
        ("vgg11", 9_226_884),
        ("resnet18", 11_172_292),
    ],
)
def test_the_parameter_count_is_the_recorded_one(
    architecture: Architecture, parameters: int
) -> None:
    assert FlatNet(config(architecture), classes=4, image_size=112).parameters == parameters


@pytest.mark.parametrize("architecture", OTHERS)
def test_convolutions_are_those_of_torchvision(architecture: Architecture) -> None:
    with torch.device("meta"):
        theirs = getattr(torchvision.models, architecture)()

    def convolutions(module: nn.Module) -> list[tuple[object, ...]]:
        found = (m for m in module.modules() if isinstance(m, nn.Conv2d))
        return [(tuple(m.weight.shape), m.stride, m.padding) for m in found]

    assert convolutions(on_meta(architecture, 224, channels=3)) == convolutions(theirs)


@pytest.mark.parametrize("architecture", OTHERS)
def test_images_too_small_for_the_architecture_are_refused(architecture: Architecture) -> None:
    with pytest.raises(BadConfigError, match="at least 32 pixels, got 16"):
        FlatNet(config(architecture), classes=4, image_size=16)


def test_the_seed_decides_the_initial_parameters() -> None:
    net = FlatNet(config("resnet18"), classes=4, image_size=32)
    first_P = net.initial(5)
    assert torch.equal(first_P, net.initial(5))
    assert not torch.equal(first_P, net.initial(6))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", OTHERS)
def test_a_dozen_steps_fit_a_dozen_images(architecture: Architecture) -> None:
    generator = torch.Generator().manual_seed(0)
    labels_B = torch.arange(12) % 3
    x_BCHW = torch.randn(12, 1, 32, 32, generator=generator) * 0.5
    for image, label in zip(x_BCHW, labels_B, strict=True):
        image[0, 10 * int(label) : 10 * int(label) + 10] += 1.5
    net = FlatNet(config(architecture), classes=3, image_size=32)
    theta_P = net.initial(1)
    velocity_P = torch.zeros_like(theta_P)
    losses = [
        train_epoch(net, theta_P, velocity_P, [(x_BCHW, labels_B)], lr=0.01, momentum=0.9)
        for _ in range(16)
    ]
    assert losses[-1] < 0.2 * losses[0]

"""Networks by name: the paper's ConvNet, and others for cross-architecture evaluation.

AlexNet, VGG11 and ResNet18 keep torchvision's convolutions (tested against torchvision) and change what
small grey images and pure functions of the parameters need:

- group norm of up to 32 groups (Wu and He 2018) after every convolution instead of batch norm, AlexNet
  included: nothing is remembered between batches. Instance norm, as in the ConvNet, would turn the 1x1 and
  2x2 maps at the end of these networks into zeros.
- no dropout; global average pooling and one linear layer instead of two layers of 4096: the classifier is
  then the same for every image size, and 95 % of AlexNet's and VGG's parameters go.
- a stem that fits the image: stride 4 in front of the body as published from 96 pixels on, 2 below, 1
  below 48 (VGG11 has no such stem; it needs 32 pixels for its five poolings).
- filters start as in torchvision's VGG and ResNet (He et al. 2015, fan out). PyTorch's default filters are smaller,
  and under a norm smaller filters mean larger steps: VGG11 then stayed at chance at 0.01, where it now learns.
- ReLU is not in place, so the networks can be differentiated twice.

`NetConfig.width` and `depth` belong to the ConvNet; the others ignore them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ppdd_core.config import NetConfig
from ppdd_core.errors import BadConfigError
from ppdd_core.nets.convnet import ConvNet

SMALLEST = 32  # pixels; below it the last maps of these networks would be empty

ALEXNET = (192, 384, 256, 256)  # filters behind the first 64
VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # filters between the poolings


def build_module(config: NetConfig, *, classes: int, image_size: int, channels: int) -> nn.Module:
    """Return a freshly initialised module with `forward` to logits [B, K] and `features` [B, D].

    AlexNet, VGG11 and ResNet18 refuse images under 32 pixels with BadConfigError.
    """
    if config.architecture == "convnet":
        return ConvNet(
            channels=channels,
            classes=classes,
            image_size=image_size,
            width=config.width,
            depth=config.depth,
        )
    if image_size < SMALLEST:
        raise BadConfigError(
            f"{config.architecture} needs images of at least {SMALLEST} pixels, got {image_size}; use the convnet"
        )
    body, features = _BODIES[config.architecture](channels, image_size)
    return Backbone(body, nn.Linear(features, classes))


class Backbone(nn.Module):
    """Map images [B, C, S, S] to logits [B, K]: a body, global average pooling, one linear layer."""

    def __init__(self, body: nn.Sequential, classifier: nn.Linear) -> None:
        super().__init__()
        self.body, self.classifier = body, classifier

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return what the last layer sees, [B, D]."""
        out: Tensor = self.body(x_BCHW.contiguous(memory_format=torch.channels_last))
        return out.mean(dim=(2, 3))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits [B, K]."""
        out: Tensor = self.classifier(self.features(x_BCHW))
        return out


def _stem_stride(image_size: int) -> int:
    return 4 if image_size >= 96 else 2 if image_size >= 48 else 1


def _norm(filters: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, filters), filters)


def _block(
    inputs: int, filters: int, kernel_size: int, stride: int = 1, padding: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, filters, kernel_size, stride, padding)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    return [convolution, _norm(filters), nn.ReLU()]


def _alexnet(channels: int, image_size: int) -> tuple[nn.Sequential, int]:
    stride = _stem_stride(image_size)
    stem = _block(channels, 64, 11, 4, 2) if stride == 4 else _block(channels, 64, 5, stride, 2)
    first, second, third, last = ALEXNET
    body = [
        *stem,
        nn.MaxPool2d(3, 2),
        *_block(64, first, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *_block(first, second, 3),
        *_block(second, third, 3),
        *_block(third, last, 3),
        nn.MaxPool2d(3, 2),
    ]
    return nn.Sequential(*body), last


def _vgg11(channels: int, _image_size: int) -> tuple[nn.Sequential, int]:
    body: list[nn.Module] = []
    inputs = channels
    for stage in VGG11:
        for filters in stage:
            body += _block(inputs, filters, 3)
            inputs = filters
        body.append(nn.MaxPool2d(2))
    return nn.Sequential(*body), inputs


def _resnet18(channels: int, image_size: int) -> tuple[nn.Sequential, int]:
    from torchvision.models import resnet18  # half a second; only who asks for it pays

    net = resnet18(norm_layer=_norm)
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    stride = _stem_stride(image_size)
    if stride == 4:
        stem = [nn.Conv2d(channels, 64, 7, 2, 3, bias=False), net.bn1, net.relu, net.maxpool]
    else:
        stem = [nn.Conv2d(channels, 64, 3, stride, 1, bias=False), net.bn1, net.relu]
    return nn.Sequential(*stem, net.layer1, net.layer2, net.layer3, net.layer4), net.fc.in_features


_BODIES: dict[str, Callable[[int, int], tuple[nn.Sequential, int]]] = {
    "alexnet": _alexnet,
    "vgg11": _vgg11,
    "resnet18": _resnet18,
}

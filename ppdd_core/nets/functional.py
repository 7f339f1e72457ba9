"""FlatNet: a module as the pure function (theta_P, x) -> logits, with one flat parameter vector.

Shape suffixes: P flat parameters, B mini-batch, C H W channel height width, K classes, D features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ppdd_core.config import NetConfig
from ppdd_core.errors import BadConfigError
from ppdd_core.nets.architectures import build_module


class FlatNet:
    """A network whose parameters are an argument: `net(theta_P, x_BCHW)` returns logits [B, K].

    Differentiable any number of times in both. Modules with buffers (running statistics) are refused:
    a function of its parameters alone has none.
    """

    def __init__(
        self, config: NetConfig, *, classes: int, image_size: int, channels: int = 1
    ) -> None:
        self.config = config
        self.classes, self.image_size, self.channels = classes, image_size, channels
        with torch.device("meta"):
            self._module = self._fresh()
        buffers = [name for name, _ in self._module.named_buffers()]
        if buffers:
            raise BadConfigError(
                f"{config.architecture} keeps running statistics ({buffers[0]}); use a norm without them"
            )
        self._names = [name for name, _ in self._module.named_parameters()]
        self._shapes = [p.shape for p in self._module.parameters()]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self.parameters = sum(self._sizes)

    def _fresh(self) -> nn.Module:
        return build_module(
            self.config, classes=self.classes, image_size=self.image_size, channels=self.channels
        )

    def initial(self, seed: int) -> Tensor:
        """Return freshly initialised parameters theta_P, float32 on the CPU; the seed decides them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return flatten(p.detach() for p in self._fresh().parameters())

    def split(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name, as views of `theta_P`."""
        parts = torch.split(theta_P, self._sizes)
        return {
            name: part.view(shape)
            for name, part, shape in zip(self._names, parts, self._shapes, strict=True)
        }

    def __call__(self, theta_P: Tensor, x_BCHW: Tensor) -> Tensor:
        """Return logits [B, K]."""
        out: Tensor = functional_call(self._module, self.split(theta_P), (x_BCHW,))
        return out

    def features(self, theta_P: Tensor, x_BCHW: Tensor) -> Tensor:
        """Return what the last linear layer sees, [B, D]."""
        out: Tensor = functional_call(
            _Features(self._module), _prefixed(self.split(theta_P)), (x_BCHW,)
        )
        return out


class _Features(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.net.features(x_BCHW)  # type: ignore[operator]
        return out


def _prefixed(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"net.{name}": value for name, value in named.items()}


def flatten(parameters: Iterable[Tensor]) -> Tensor:
    """Return all parameters as one vector [P], in the order given."""
    return torch.cat([p.reshape(-1) for p in parameters])

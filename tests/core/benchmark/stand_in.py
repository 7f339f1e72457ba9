"""A folder with the names of the public MTT code, written for these tests: the real one is not ours to ship."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

NETWORKS = """
from torch import nn

class ConvNet(nn.Sequential):
    def __init__(self, *, channel, num_classes, net_width, net_depth, im_size, **_):
        blocks = []
        for depth in range(net_depth):
            blocks += [nn.Conv2d(net_width if depth else channel, net_width, 3, padding=3 - 2 * bool(depth)),
                       nn.GroupNorm(net_width, net_width), nn.ReLU(), nn.AvgPool2d(2)]
        side = im_size[0] >> net_depth
        super().__init__(*blocks, nn.Flatten(), nn.Linear(net_width * side * side, num_classes))
"""
FLAT = """
import torch

class ReparamModule:
    def __init__(self, net):
        self.net = net

    def __call__(self, x, flat_param):
        sizes = [p.numel() for p in self.net.parameters()]
        parts = torch.split(flat_param, sizes)
        named = {name: part.view(p.shape) for (name, p), part in zip(self.net.named_parameters(), parts)}
        return torch.func.functional_call(self.net, named, (x,))
"""
UTILS = """
import kornia  # as in the real one: not installed here, and not used

class ParamDiffAug:
    pass

def DiffAugment(x, strategy, param):
    return x * 1.0

def epoch(mode, loader, net, optimizer, criterion, args, aug):
    for x, y in loader:
        optimizer.zero_grad()
        criterion(net(DiffAugment(x, args.dsa_strategy, args.dsa_param)), y).backward()
        optimizer.step()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[Path]:
    """Yield such a folder; what a test has imported from it in this process is forgotten afterwards."""
    folder, path = tmp_path / "mtt", list(sys.path)
    folder.mkdir()
    files = {"networks": NETWORKS, "reparam_module": FLAT, "utils": UTILS}
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    yield folder
    sys.path[:] = path
    for name in (*files, "kornia"):
        sys.modules.pop(name, None)

"""The public MTT code, from a folder of the user's, doing the same work in this process (Cazenavette 2022).

Nothing of it is ours to ship: its network, its flat-parameter module and its augmentation are imported from there, and
its loop, the body of a program, is driven as that program does. It runs as it is, but for two things. Its first
convolution of grey images pads by three (made for digits of 28 pixels); it pads by one here, as ours does. And grey
images are given with the strides of channels first: with others, its `view` fails under present versions of torch.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ppdd_core.benchmark.case import Case, Measured, check_reference
from ppdd_core.benchmark.meter import convolution_work, epoch_work, measure
from ppdd_core.benchmark.step import LR, batches, inputs, keep_gradient, net_of
from ppdd_core.config import NetConfig

UNUSED = (
    "kornia",
    "scipy.ndimage.interpolation",
    "tqdm",
)  # imported there, not used by what runs here


def run_step(case: Case) -> Measured:
    """Measure one step of the reference: J student steps kept in one graph, then backwards through all of it."""
    start_P, target_P, images_ICHW, labels_I = inputs(case, net_of(case))
    code = Code(Path(case.reference))
    student = code.student(_network(code, case).to(case.device))
    images_ICHW.requires_grad_(True)
    lr = start_P.new_tensor(LR).requires_grad_(True)
    generator = torch.Generator().manual_seed(1)

    def once() -> None:
        rows = batches(case, generator)
        loss = code.matching_loss(
            student, start_P, target_P, images_ICHW, labels_I, lr, rows, case.augment
        )
        images_ICHW.grad = lr.grad = None
        loss.backward()
        if case.keep and images_ICHW.grad is not None and lr.grad is not None:
            keep_gradient(Path(case.keep), images_ICHW.grad, lr.grad)

    return measure(case, once, convolution_work(case) * case.student_steps)


def run_teachers(case: Case, images_RCHW: Tensor, labels_R: Tensor) -> Measured:
    """Measure epochs of the reference's own training loop, with its augmentation, on normalised images."""
    code = Code(Path(case.reference))
    epoch = code.expert(
        _network(code, case).to(case.device), images_RCHW, labels_R,
        lr=LR, batch_size=case.batch, augment=case.augment, device=case.device,
    )  # fmt: skip
    count = len(images_RCHW)
    return measure(case, epoch, epoch_work(case, count), count)


class Code:
    """What is imported from the user's folder, and driven: network, flat-parameter module, augmentation, training loop.

    `Code(folder)` puts the folder first on the path of this process; BadConfigError where the code is not there.
    """

    def __init__(self, folder: Path) -> None:
        check_reference(folder)
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        for name in UNUSED:
            _stand_in(name)
        self._networks: Any = importlib.import_module("networks")
        self._utils: Any = importlib.import_module("utils")
        self._flat: Any = importlib.import_module("reparam_module").ReparamModule
        self._settings = self._utils.ParamDiffAug()

    def network(self, net: NetConfig, *, classes: int, image_size: int) -> nn.Module:
        """Return a freshly initialised ConvNet for grey images; torch's global seed decides it."""
        made: nn.Module = self._networks.ConvNet(
            channel=1, num_classes=classes, net_width=net.width, net_depth=net.depth, net_act="relu",
            net_norm="instancenorm", net_pooling="avgpooling", im_size=(image_size, image_size),
        )  # fmt: skip
        first = next(one for one in made.modules() if isinstance(one, nn.Conv2d))
        first.padding = (1, 1)
        made.register_forward_pre_hook(
            lambda _, given: (given[0].reshape(-1).view(given[0].shape),)
        )
        return made

    def student(self, net: nn.Module) -> Any:
        """Return the network as a function of its images and `flat_param`."""
        return self._flat(net)

    def matching_loss(
        self,
        student: Any,
        start_P: Tensor,
        target_P: Tensor,
        images_ICHW: Tensor,
        labels_I: Tensor,
        lr: Tensor,
        batches: Sequence[Tensor],
        strategy: str,
    ) -> Tensor:
        """Return how far J steps kept in one graph stay from the target, as a share of the way."""
        thetas = [start_P.clone().requires_grad_(True)]
        for rows_B in batches:
            x_BCHW = images_ICHW[rows_B]
            if strategy:
                x_BCHW = self._utils.DiffAugment(x_BCHW, strategy, param=self._settings)
            loss = F.cross_entropy(student(x_BCHW, flat_param=thetas[-1]), labels_I[rows_B])
            (grad_P,) = torch.autograd.grad(loss, thetas[-1], create_graph=True)
            thetas.append(thetas[-1] - lr * grad_P)
        left = F.mse_loss(thetas[-1], target_P, reduction="sum")
        return left / F.mse_loss(start_P, target_P, reduction="sum")

    def expert(
        self,
        net: nn.Module,
        images_RCHW: Tensor,
        labels_R: Tensor,
        *,
        lr: float,
        batch_size: int,
        augment: str,
        device: str,
    ) -> Callable[[], object]:
        """Return what trains `net` for one epoch by the reference's own loop: SGD without momentum."""
        loader = DataLoader(
            TensorDataset(images_RCHW, labels_R), batch_size=batch_size, shuffle=True, num_workers=0
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=lr)
        options = ModuleType("options")
        vars(options).update(
            device=device, dataset="chest", dsa=bool(augment), dsa_strategy=augment,
            dsa_param=self._settings, dc_aug_param=None,
        )  # fmt: skip
        criterion = nn.CrossEntropyLoss()
        return lambda: self._utils.epoch(
            "train", loader, net, optimizer, criterion, options, aug=bool(augment)
        )


def _network(code: Code, case: Case) -> nn.Module:
    return code.network(
        NetConfig(width=case.width, depth=case.depth),
        classes=case.classes,
        image_size=case.image_size,
    )


def _stand_in(name: str) -> None:
    """Let an import succeed whose names nothing here calls."""
    try:
        importlib.import_module(name)
    except ImportError:
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__getattr__ = lambda _: None  # type: ignore[method-assign]
        sys.modules[name] = module

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
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppdd_core.benchmark.case import Case, Measured, check_reference
from ppdd_core.benchmark.meter import convolution_work, measure
from ppdd_core.benchmark.step import LR, batches, inputs, keep_gradient, net_of

UNUSED = (
    "kornia",
    "scipy.ndimage.interpolation",
    "tqdm",
)  # imported there, not used by what runs here


def run_step(case: Case) -> Measured:
    """Measure one step of the reference: J student steps kept in one graph, then backwards through all of it."""
    start_P, target_P, images_ICHW, labels_I = inputs(case, net_of(case))
    networks, utils = _modules(case)
    flat = importlib.import_module("reparam_module").ReparamModule
    student = flat(_network(networks, case).to(case.device))
    settings = utils.ParamDiffAug()
    images_ICHW.requires_grad_(True)
    lr = start_P.new_tensor(LR).requires_grad_(True)
    generator = torch.Generator().manual_seed(1)

    def once() -> None:
        thetas = [start_P.clone().requires_grad_(True)]
        for rows_B in batches(case, generator):
            x_BCHW = images_ICHW[rows_B]
            if case.augment:
                x_BCHW = utils.DiffAugment(x_BCHW, case.augment, param=settings)
            loss = F.cross_entropy(student(x_BCHW, flat_param=thetas[-1]), labels_I[rows_B])
            (grad_P,) = torch.autograd.grad(loss, thetas[-1], create_graph=True)
            thetas.append(thetas[-1] - lr * grad_P)
        left = F.mse_loss(thetas[-1], target_P, reduction="sum")
        images_ICHW.grad = lr.grad = None
        (left / F.mse_loss(start_P, target_P, reduction="sum")).backward()
        if case.keep and images_ICHW.grad is not None and lr.grad is not None:
            keep_gradient(Path(case.keep), images_ICHW.grad, lr.grad)

    return measure(case, once, convolution_work(case) * case.student_steps)


def run_teachers(case: Case, images_RCHW: Tensor, labels_R: Tensor) -> Measured:
    """Measure epochs of the reference's own training loop, with its augmentation, on normalised images."""
    from torch.utils.data import DataLoader, TensorDataset

    networks, utils = _modules(case)
    teacher = _network(networks, case).to(case.device)
    loader = DataLoader(
        TensorDataset(images_RCHW, labels_R), batch_size=case.batch, shuffle=True, num_workers=0
    )
    optimizer = torch.optim.SGD(teacher.parameters(), lr=LR)
    options = ModuleType("options")
    vars(options).update(
        device=case.device, dataset="chest", dsa=bool(case.augment), dsa_strategy=case.augment,
        dsa_param=utils.ParamDiffAug(), dc_aug_param=None,
    )  # fmt: skip
    return measure(
        case,
        lambda: utils.epoch(
            "train", loader, teacher, optimizer, nn.CrossEntropyLoss(), options, aug=True
        ),
        float(len(images_RCHW)),
    )


def _modules(case: Case) -> tuple[Any, Any]:
    folder = Path(case.reference)
    check_reference(folder)
    sys.path.insert(0, str(folder))
    for name in UNUSED:
        _stand_in(name)
    return importlib.import_module("networks"), importlib.import_module("utils")


def _stand_in(name: str) -> None:
    """Let an import succeed whose names nothing here calls."""
    try:
        importlib.import_module(name)
    except ImportError:
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__getattr__ = lambda _: None  # type: ignore[method-assign]
        sys.modules[name] = module


def _network(networks: Any, case: Case) -> nn.Module:
    net: nn.Module = networks.ConvNet(
        channel=1, num_classes=case.classes, net_width=case.width, net_depth=case.depth, net_act="relu",
        net_norm="instancenorm", net_pooling="avgpooling", im_size=(case.image_size, case.image_size),
    )  # fmt: skip
    first = next(one for one in net.modules() if isinstance(one, nn.Conv2d))
    first.padding = (1, 1)
    net.register_forward_pre_hook(lambda _, given: (given[0].reshape(-1).view(given[0].shape),))
    return net

"""The two engines: against each other, against SGD, against finite differences. float64, tiny networks."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ppdd_core.config import NetConfig
from ppdd_core.data.augment import Draw, draw
from ppdd_core.distill.matching import SIMILARITIES, keep_mask
from ppdd_core.distill.student import ENGINES, Matched, Step, reverse, unroll
from ppdd_core.nets.functional import FlatNet

AUGMENT = "color_crop_cutout_flip_scale_rotate"
IMAGES, BATCH = 7, 3
Case = Callable[..., Matched]


def mask(similarity: str, sigma: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return partial(keep_mask, similarity=similarity, prune_below=sigma, min_keep=0.05)


def run(
    engine: str,
    *,
    similarity: str = "signed_ratio",
    sigma: float = 0.1,
    steps: int = 4,
    batch: int = BATCH,
    device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
) -> Matched:
    net = FlatNet(NetConfig(width=4, depth=2), classes=3, image_size=8)
    start_P = net.initial(0).double().to(device)
    target_P = start_P + 0.05 * net.initial(1).double().to(device)
    generator = torch.Generator().manual_seed(0)
    images_ICHW = torch.randn(IMAGES, 1, 8, 8, generator=generator, dtype=torch.float64).to(device)
    labels_IK = (
        torch.rand(IMAGES, 3, generator=generator, dtype=torch.float64).softmax(1).to(device)
    )
    plan = tuple(
        Step(
            torch.randperm(IMAGES, generator=generator)[:batch].to(device),
            draw(AUGMENT, batch, generator),
        )
        for _ in range(steps)
    )
    lr = torch.tensor(0.05, dtype=torch.float64, device=device)
    return ENGINES[engine](
        net, start_P, target_P, images_ICHW, labels_IK, lr, plan, mask(similarity, sigma)
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("similarity", [*SIMILARITIES])
@pytest.mark.parametrize("batch", [BATCH, IMAGES])
def test_reverse_gives_the_gradients_of_unroll(similarity: str, batch: int) -> None:
    exact = run("unroll", similarity=similarity, batch=batch)
    found = run("reverse", similarity=similarity, batch=batch)
    assert float(exact.grad_images_ICHW.norm()) > 0
    assert relative(found.grad_images_ICHW, exact.grad_images_ICHW) <= 1e-10
    assert relative(found.grad_labels_IK, exact.grad_labels_IK) <= 1e-10
    assert relative(found.grad_lr, exact.grad_lr) <= 1e-10
    assert relative(found.loss, exact.loss) <= 1e-12
    assert found.kept == exact.kept


@pytest.mark.parametrize("operation", ["", "color", "crop", "cutout", "flip", "scale", "rotate"])
def test_engines_agree_under_every_augmentation(operation: str) -> None:
    generator = torch.Generator().manual_seed(1)
    net = FlatNet(NetConfig(width=3, depth=1), classes=2, image_size=8)
    start_P = net.initial(0).double()
    target_P = start_P * 0.9
    images_ICHW = torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels_IK = F.one_hot(torch.tensor([0, 1, 0, 1])).double()
    plan = tuple(
        Step(torch.tensor(rows), Draw(operation, torch.rand(2, 4, generator=generator)))
        for rows in ([0, 1], [2, 3], [1, 2])
    )
    arguments = (
        net,
        start_P,
        target_P,
        images_ICHW,
        labels_IK,
        torch.tensor(0.1, dtype=torch.float64),
        plan,
    )
    exact, found = (engine(*arguments, mask("ratio", 0.0)) for engine in (unroll, reverse))
    assert relative(found.grad_images_ICHW, exact.grad_images_ICHW) <= 1e-10


@pytest.mark.parametrize("engine", [*ENGINES])
def test_gradients_pass_gradcheck(engine: str) -> None:
    """Against finite differences, through the smooth network that they need (no ReLU kinks)."""

    def net(theta_P: Tensor, x_BCHW: Tensor) -> Tensor:
        return torch.tanh(x_BCHW.flatten(1) @ theta_P[:32].view(16, 2)) @ theta_P[32:].view(2, 2)

    generator = torch.Generator().manual_seed(3)
    start_P = torch.randn(36, generator=generator, dtype=torch.float64)
    target_P = start_P + 0.3 * torch.randn(36, generator=generator, dtype=torch.float64)
    labels_IK = F.one_hot(torch.tensor([0, 1, 1])).double()
    plan = tuple(
        Step(torch.tensor(rows), Draw("scale", torch.rand(2, 4, generator=generator)))
        for rows in ([0, 1], [2, 0], [1, 2])
    )

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, images: Tensor, lr: Tensor) -> Tensor:
            with torch.enable_grad():
                matched = ENGINES[engine](
                    net, start_P, target_P, images, labels_IK, lr, plan, mask("ratio", 0.0)
                )
            ctx.save_for_backward(matched.grad_images_ICHW, matched.grad_lr)
            return matched.loss

        @staticmethod
        def backward(
            ctx: torch.autograd.function.FunctionCtx, *outputs: Tensor
        ) -> tuple[Tensor, Tensor]:
            grad_images, grad_lr = ctx.saved_tensors  # type: ignore[attr-defined]
            return outputs[0] * grad_images, outputs[0] * grad_lr

    images = torch.randn(3, 1, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Loss.apply, (images, lr))


def test_unroll_takes_the_steps_of_sgd() -> None:
    """The student's loss at the teacher's target is that of a network trained by torch.optim.SGD."""
    net = FlatNet(NetConfig(width=4, depth=2), classes=3, image_size=8)
    start_P = net.initial(0).double()
    images_ICHW = torch.randn(
        6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    labels_I = torch.arange(6) % 3
    labels_IK = F.one_hot(labels_I).double()
    plan = tuple(
        Step(torch.tensor(rows), Draw("", torch.empty(3, 0))) for rows in ([0, 1, 2], [3, 4, 5])
    )

    theta_P = start_P.clone().requires_grad_(True)
    optimiser = torch.optim.SGD([theta_P], lr=0.1)
    for step in plan:
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(
            net(theta_P, images_ICHW[step.rows_B]), labels_I[step.rows_B]
        ).backward()
        optimiser.step()
    reached_P = theta_P.detach()
    matched = reverse(
        net,
        start_P,
        reached_P,
        images_ICHW,
        labels_IK,
        torch.tensor(0.1, dtype=torch.float64),
        plan,
        mask("ratio", 0.0),
    )
    assert float(matched.loss) < 1e-24  # it arrived exactly where SGD did


def test_a_longer_student_needs_no_more_graphs() -> None:
    """What reverse keeps per step is one parameter vector: graph memory does not grow with J."""

    def most_saved(steps: int) -> int:
        alive, most = 0, 0

        def pack(tensor: Tensor) -> tuple[Tensor, object]:
            nonlocal alive, most
            alive += tensor.numel()
            most = max(most, alive)

            class Released:
                def __del__(self, numbers: int = tensor.numel()) -> None:
                    nonlocal alive
                    alive -= numbers

            return tensor, Released()

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed[0]):
            run("reverse", steps=steps)
        return most

    assert most_saved(24) == most_saved(6)


@pytest.mark.gpu
def test_the_gpu_gives_the_gradients_of_the_cpu() -> None:
    found = [run("reverse", device=torch.device(name)) for name in ("cpu", "cuda")]
    assert relative(found[1].grad_images_ICHW.cpu(), found[0].grad_images_ICHW) <= 1e-8
    assert relative(found[1].grad_lr.cpu(), found[0].grad_lr) <= 1e-8


@pytest.mark.gpu
def test_a_step_of_the_paper_fits_a_gpu() -> None:
    """112 px, width 128, depth 5, J = 20, 20 images per step: it must run, and in one step's memory."""
    device = torch.device("cuda")
    net = FlatNet(NetConfig(width=128, depth=5), classes=4, image_size=112)
    start_P = net.initial(0).to(device)
    images_ICHW = torch.randn(40, 1, 112, 112, device=device)
    generator = torch.Generator().manual_seed(0)
    plan = tuple(
        Step(torch.randperm(40, generator=generator)[:20].to(device), draw(AUGMENT, 20, generator))
        for _ in range(20)
    )
    torch.cuda.reset_peak_memory_stats()
    matched = reverse(
        net, start_P, start_P * 1.01, images_ICHW, F.one_hot(torch.arange(40, device=device) % 4, 4).float(),
        torch.tensor(0.01, device=device), plan, mask("signed_ratio", 0.1),
    )  # fmt: skip
    assert torch.isfinite(matched.grad_images_ICHW).all()
    assert torch.cuda.max_memory_allocated() < 16 * 2**30  # the paper's card

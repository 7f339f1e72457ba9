"""How large the reference's run is: its recipe, at the scale that is really run. Torch-free.

Defaults are of `buffer.py` and `distill.py`, with the flags that its authors give for a deep ConvNet on large images
(K = 2, I⁺ = 10); experts, epochs and iterations are far fewer than theirs, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from ppdd_core.errors import BadConfigError

FULL = {
    "experts": 100,
    "epochs": 50,
    "iterations": 5000,
}  # the defaults of buffer.py and distill.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The reference's recipe; in comments its own names where they differ."""

    experts: int = 10  # num_experts
    epochs: int = 20  # train_epochs
    lr_teacher: float = 0.01  # of experts, and the first step size of the student
    batch_train: int = 256
    iterations: int = 300  # Iteration
    syn_steps: int = 20
    expert_epochs: int = 2
    max_start_epoch: int = 10
    lr_img: float = 1000.0
    lr_lr: float = 1e-5
    batch_syn: int = 0  # 0 = all synthetic images, its default
    init: str = "real"  # pix_init

    def __post_init__(self) -> None:
        for name in (
            "experts", "epochs", "batch_train", "iterations", "syn_steps", "expert_epochs", "max_start_epoch",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise BadConfigError(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        for name in ("lr_teacher", "lr_img", "lr_lr"):
            if not getattr(self, name) > 0:
                raise BadConfigError(
                    f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}"
                )
        last = self.max_start_epoch - 1 + self.expert_epochs
        if last > self.epochs:
            raise BadConfigError(
                f"--epochs must be at least {last}: students start as late as epoch {self.max_start_epoch - 1} "
                f"and must reach {self.expert_epochs} further ones; got {self.epochs}"
            )

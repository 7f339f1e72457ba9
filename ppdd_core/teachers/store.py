"""Trajectories on disk: one folder per teacher, one safetensors file per epoch.

    teachers/003/epoch-000.safetensors     the initial parameters
    teachers/003/epoch-001.safetensors     after one epoch; `theta` [P], metadata: mean loss, accuracy
    teachers/003/momentum-001.safetensors  only the newest, and only where momentum is used

Every file is written aside and moved into place, so a kill leaves whole epochs and nothing else.
Distillation reads the two epochs it needs, never a whole trajectory.

Shape suffix: P flat network parameters.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppdd_core.data.files import write_atomically
from ppdd_core.errors import CheckpointError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Epoch:
    """What is known of one stored epoch: mean training loss, accuracy on the watched images."""

    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class TrajectoryStore:
    """The folder that holds all trajectories of one run."""

    folder: Path

    def _file(self, teacher: int, kind: str, epoch: int) -> Path:
        return self.folder / f"{teacher:03d}" / f"{kind}-{epoch:03d}.safetensors"

    def epochs_done(self, teacher: int) -> int:
        """Return the newest epoch up to which none is missing, -1 where the first one is."""
        found = {file.name for file in (self.folder / f"{teacher:03d}").glob("epoch-*.safetensors")}
        done = -1
        while self._file(teacher, "epoch", done + 1).name in found:
            done += 1
        return done

    def write(
        self,
        teacher: int,
        epoch: int,
        theta_P: Tensor,
        *,
        dtype: str,
        epoch_info: Epoch,
        velocity_P: Tensor | None,
        exact_P: Tensor | None = None,
    ) -> None:
        """Store a copy of the snapshot of `epoch`, and what is needed to go on from there.

        That is the momentum, where there is one, and `exact_P`, the parameters, where they are not the snapshot itself.
        """
        if velocity_P is not None:
            momentum = self._file(teacher, "momentum", epoch)
            write_atomically(momentum, save({"velocity": velocity_P.cpu()}))
        # Beside a snapshot in a smaller dtype, or a mean, the newest epoch keeps what training resumes from exactly.
        if exact_P is None and dtype != "float32":
            exact_P = theta_P
        if exact_P is not None:
            exact = self._file(teacher, "exact", epoch)
            write_atomically(exact, save({"theta": exact_P.cpu()}))
        # one key: safetensors writes several in an order that changes from run to run
        metadata = {"epoch": json.dumps(dataclasses.asdict(epoch_info))}
        stored = theta_P.to("cpu", _DTYPES[dtype], copy=True)
        write_atomically(self._file(teacher, "epoch", epoch), save({"theta": stored}, metadata))
        for kind in ("momentum", "exact"):
            self._file(teacher, kind, epoch - 1).unlink(missing_ok=True)

    def read(self, teacher: int, epoch: int) -> Tensor:
        """Return theta_P of one epoch, float32; a missing or damaged file raises CheckpointError."""
        return _tensor(self._file(teacher, "epoch", epoch), "theta").float()

    def read_state(
        self, teacher: int, epoch: int, *, exact: bool, momentum: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """Return what training goes on from: exact theta_P and, where used, the momentum.

        `exact` says that the snapshots themselves are exact.
        None where that is not kept (only the newest epoch has it): the teacher starts anew then.
        """
        theta = self._file(teacher, "epoch" if exact else "exact", epoch)
        velocity = self._file(teacher, "momentum", epoch)
        if epoch < 0 or not theta.exists() or (momentum and not velocity.exists()):
            return None
        return _tensor(theta, "theta"), _tensor(velocity, "velocity") if momentum else None

    def info(self, teacher: int, epoch: int) -> Epoch:
        """Return loss and accuracy recorded with one epoch; CheckpointError as in `read`."""
        file = self._file(teacher, "epoch", epoch)
        try:
            return Epoch(**json.loads(_metadata(file)["epoch"]))
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{file} lacks its figures; delete it and run again: that epoch is trained anew"
            ) from None

    def pack(self, teacher: int, epochs: int, file: Path) -> None:
        """Write one whole trajectory of `epochs` epochs into a ZIP without compression; `unpack` reads it."""
        with zipfile.ZipFile(file, "w") as archive:
            for epoch in range(epochs + 1):
                stored = self._file(teacher, "epoch", epoch)
                archive.writestr(zipfile.ZipInfo(stored.name), stored.read_bytes())

    def unpack(self, teacher: int, epochs: int, file: Path) -> None:
        """Take over a trajectory that `pack` wrote elsewhere; CheckpointError where it is none of so many epochs."""
        try:
            with zipfile.ZipFile(file) as archive:
                for epoch in range(epochs + 1):
                    stored = self._file(teacher, "epoch", epoch)
                    write_atomically(stored, archive.read(stored.name))
                    _metadata(stored)
        except (KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{file} is no trajectory of {epochs} epochs ({error})") from None

    def size(self) -> int:
        """Return the bytes stored."""
        return sum(file.stat().st_size for file in self.folder.glob("*/*.safetensors"))


def _tensor(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}); delete it and run again: that epoch is trained anew"
        ) from None


def _metadata(file: Path) -> Mapping[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}); delete it and run again: that epoch is trained anew"
        ) from None

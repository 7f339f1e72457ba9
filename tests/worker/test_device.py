"""One device, one worker: names that say which, and none taken twice."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ppdd_core.errors import BadConfigError
from services.settings import Settings, load_settings
from worker import device
from worker.device import same_kind, take_place

HOST = socket.gethostname()


def settings(tmp_path: Path, **worker: str) -> Settings:
    return load_settings({}, data_dir=tmp_path / "node", worker=worker)


def test_workers_on_the_cpu_have_names_of_their_own(tmp_path: Path) -> None:
    given = settings(tmp_path, device="cpu")
    with take_place(given) as one:
        with take_place(given) as two:
            assert (one.name, two.name) == (f"cpu@{HOST}", f"cpu2@{HOST}")
        with take_place(given) as again:
            assert again.name == two.name
    assert "cores" in one.text


def test_every_gpu_has_one_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_gpus", lambda: ["NVIDIA One", "NVIDIA Two"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    given = settings(tmp_path, device="cuda")
    with take_place(given) as one, take_place(given) as two:
        assert (one.name, one.visible, one.text) == (f"gpu3@{HOST}", "3", "NVIDIA One")
        assert (two.name, two.visible) == (f"gpu5@{HOST}", "5")
        with pytest.raises(BadConfigError, match="every GPU has its worker"), take_place(given):
            pass


def test_a_gpu_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_gpus", list)
    with pytest.raises(BadConfigError, match="no CUDA device"):
        take_place(settings(tmp_path, device="cuda")).__enter__()


def test_a_courier_says_what_it_is(tmp_path: Path) -> None:
    with take_place(settings(tmp_path, kinds="pull")) as place:
        assert place.name == f"pull@{HOST}"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("cpu@a", "cpu2@b", True),
        ("gpu0@a", "gpu3@b", True),
        ("gpu0@a", "cpu@a", False),
        ("pull@a", "cpu@a", False),
        ("pull@a", "pull2@a", False),
    ],
)
def test_only_like_devices_share_teachers(one: str, other: str, same: bool) -> None:
    assert same_kind(one, other) is same

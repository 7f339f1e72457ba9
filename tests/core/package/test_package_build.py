from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ppdd_core.config import NetConfig
from ppdd_core.data.distilled import Normalisation
from ppdd_core.errors import BadManifestError, PackageError
from ppdd_core.package import manifest
from ppdd_core.package.archive import read_files, write_archive
from ppdd_core.package.build import (
    PackageContent,
    build_files,
    export_archive,
    source_summary,
    write_package,
)
from ppdd_core.package.load import load_package
from ppdd_core.package.manifest import MANIFEST
from ppdd_core.package.verify import verify_package

Change = Callable[[PackageContent], PackageContent]


def test_the_same_content_gives_the_same_bytes(
    content: PackageContent, key: Ed25519PrivateKey, built: Mapping[str, bytes], tmp_path: Path
) -> None:
    assert build_files(content, key) == built
    for name in ("one", "other"):
        write_package(tmp_path / name, content, key)
        export_archive(tmp_path / name, tmp_path / f"{name}.zip")
    assert dict(read_files(tmp_path / "one").files) == dict(built)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


def test_what_is_written_verifies_and_loads_back(
    content: PackageContent, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    stated = write_package(tmp_path / "package", content, key)
    assert verify_package(tmp_path / "package").manifest == stated
    loaded = load_package(tmp_path / "package")
    assert torch.equal(loaded.images, content.distilled.images)
    assert torch.equal(loaded.labels, content.distilled.labels)
    assert loaded.learning_rate == pytest.approx(0.0123, rel=1e-7)
    assert loaded.classes == content.distilled.classes
    assert loaded.normalisation == content.distilled.normalisation
    assert (loaded.net, loaded.augment) == (content.distilled.net, content.distilled.augment)


def test_soft_labels_and_float16_round_trip(
    soft_content: PackageContent, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    write_package(tmp_path / "p", dataclasses.replace(soft_content, dtype="float16"), key)
    loaded = load_package(tmp_path / "p")
    assert loaded.images.dtype == torch.float32
    assert torch.equal(loaded.images, soft_content.distilled.images.half().float())
    assert torch.equal(loaded.labels, soft_content.distilled.labels)


def test_writing_again_changes_nothing_and_another_content_is_refused(
    content: PackageContent, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    first = write_package(tmp_path / "package", content, key)
    assert write_package(tmp_path / "package", content, key) == first
    with pytest.raises(PackageError, match="never changes"):
        write_package(tmp_path / "package", dataclasses.replace(content, version="1.0.1"), key)
    assert verify_package(tmp_path / "package").manifest == first


def with_set(**changes: object) -> Change:
    return lambda content: dataclasses.replace(
        content,
        distilled=dataclasses.replace(content.distilled, **changes),  # type: ignore[arg-type]
    )


def with_content(**changes: object) -> Change:
    return lambda content: dataclasses.replace(content, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_set(images=torch.full((6, 1, 16, 16), torch.nan)), "not finite"),
        (with_set(labels=torch.tensor([0, 0, 0, 1, 2, 2])), "not every class"),
        (with_set(labels=torch.tensor([0, 0, 1, 1, 2, 3])), "from 0 to 2"),
        (with_set(images=torch.zeros(6, 1, 32, 32)), "image size"),
        (with_set(images=torch.zeros(4, 1, 16, 16)), "4 images"),
        (with_set(net=NetConfig(width=16, depth=2)), "network"),
        (with_set(augment="flip"), "augmentation"),
        (with_set(learning_rate=0.0), "learning_rate"),
        (with_set(normalisation=Normalisation(120.0, 60.0)), "normalisation.mean"),
        (with_content(name="hospital-b/cxr"), "site.id"),
        (with_content(version="1"), "version must be"),
        (with_content(created="yesterday"), "created must be"),
        (with_content(source=source_summary({"COVID": 50}, 20)), "same classes"),
        (with_content(evaluation={}), "evaluation report"),
        (with_content(privacy={}), "privacy report"),
        (with_content(privacy={"format_version": float("nan")}), "JSON"),
        (with_content(software={}), "ppdd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_is_written_that_would_not_verify(
    content: PackageContent, key: Ed25519PrivateKey, tmp_path: Path, change: Change, said: str
) -> None:
    with pytest.raises(PackageError, match=said):
        write_package(tmp_path / "package", change(content), key)
    assert list(tmp_path.iterdir()) == []


def test_every_problem_of_a_manifest_is_told_at_once(
    content: PackageContent, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    bad = dataclasses.replace(content, version="1", created="now", site_name="")
    with pytest.raises(BadManifestError) as caught:
        write_package(tmp_path / "package", bad, key)
    assert len(caught.value.problems) == 3


def test_a_package_with_faults_is_not_exported(
    content: PackageContent, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    write_package(tmp_path / "package", content, key)
    with (tmp_path / "package" / "README.md").open("ab") as file:
        file.write(b"more")
    with pytest.raises(PackageError, match="README.md: it was changed"):
        export_archive(tmp_path / "package", tmp_path / "package.zip")
    assert not (tmp_path / "package.zip").exists()


def test_loading_needs_a_sound_package_and_the_pinned_key(
    built: Mapping[str, bytes], tmp_path: Path
) -> None:
    write_archive(built, tmp_path / "package.zip")
    stated = manifest.read(built[MANIFEST])
    assert len(load_package(tmp_path / "package.zip", trusted_key=stated.key)) == 6
    with pytest.raises(PackageError, match="expected was"):
        load_package(tmp_path / "package.zip", trusted_key="0" * 64)
    data = bytearray((tmp_path / "package.zip").read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "package.zip").write_bytes(data)
    with pytest.raises(PackageError):
        load_package(tmp_path / "package.zip")


def test_the_card_tells_the_truth_about_loading(
    built: Mapping[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(built, tmp_path / "cxr-1.0.0.zip")
    monkeypatch.chdir(tmp_path)
    code = built["README.md"].decode().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"torch": torch}
    exec(code, names)
    assert tuple(names["images"].shape) == (6, 1, 16, 16)
    served = list(torch.utils.data.DataLoader(names["package"], batch_size=6, shuffle=True))
    assert [tuple(images.shape) for images, _ in served] == [(6, 1, 16, 16)]


def test_killed_while_writing_there_is_no_package(
    built: Mapping[str, bytes], tmp_path: Path
) -> None:
    code = (
        "import os, sys, pathlib\n"
        "from ppdd_core.package import archive\n"
        "source, target, last = sys.argv[1:]\n"
        "files = archive.read_files(pathlib.Path(source)).files\n"
        "synced, real = [0], os.fsync\n"
        "def fsync(descriptor):\n"
        "    synced[0] += 1\n"
        "    if synced[0] == int(last): os.kill(os.getpid(), 9)\n"
        "    real(descriptor)\n"
        "os.fsync = fsync\n"
        "archive.write_folder(files, pathlib.Path(target))\n"
    )
    write_archive(built, tmp_path / "package.zip")
    target = tmp_path / "out" / "package"
    for last in (1, len(built) // 2, len(built) + 2):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "package.zip"), str(target), str(last)],
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        assert not target.exists()

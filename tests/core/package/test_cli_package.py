from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ppdd_core.cli.main import main
from ppdd_core.cli.package import app
from ppdd_core.package.archive import read_files, write_archive, write_folder
from ppdd_core.package.manifest import PRIVACY
from ppdd_core.package.signature import fingerprint, printable

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))

    def run_program(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments], program=app)
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run_program


@pytest.fixture
def folder(built: Mapping[str, bytes], tmp_path: Path) -> Path:
    write_folder(built, tmp_path / "package")
    return tmp_path / "package"


def damage(folder: Path) -> None:
    (folder / PRIVACY).write_bytes(b"{}")
    (folder / "run.py").write_bytes(b"import os")


def test_verify_says_sound_and_by_whom(run: Run, folder: Path, key: Ed25519PrivateKey) -> None:
    code, out, _ = run("verify", folder)
    assert code == 0
    assert out.splitlines()[0].startswith("sound: hospital-a/cxr 1.0.0")
    assert f"signed by unknown key {fingerprint(key)}" in out.splitlines()


def test_verify_prints_one_line_per_fault_and_leaves_with_3(run: Run, folder: Path) -> None:
    damage(folder)
    code, out, err = run("verify", folder)
    assert code == 3 and err == ""
    lines = out.splitlines()
    assert any(line.startswith("privacy.json: it was changed") for line in lines)
    assert "run.py: it does not belong here; the manifest does not list it" in lines
    code, out, _ = run("verify", folder, "--json")
    assert code == 3
    assert {fault["code"] for fault in json.loads(out)["faults"]} >= {"changed_file", "extra_file"}


def test_a_pinned_key_decides(
    run: Run, folder: Path, key: Ed25519PrivateKey, other_key: Ed25519PrivateKey
) -> None:
    code, out, _ = run("verify", folder, "--key", printable(fingerprint(key)))
    assert code == 0 and "signed by the pinned key" in out
    for command in ("verify", "show", "export", "import"):
        assert run(command, folder, "--key", fingerprint(other_key))[0] == 3
    for command in ("verify", "show", "export", "import"):
        code, _, err = run(command, folder, "--key", "abc")
        assert code == 2 and "--key: a key fingerprint has 64 hex digits" in err


def test_what_is_no_package_is_refused_with_its_path(run: Run, tmp_path: Path) -> None:
    code, _, err = run("verify", tmp_path / "nothing")
    assert code == 3 and "there is no package at" in err
    (tmp_path / "text.zip").write_text("hello")
    assert run("verify", tmp_path / "text.zip")[0] == 3
    (tmp_path / "empty").mkdir()
    code, _, err = run("show", tmp_path / "empty")
    assert code == 3 and "no manifest" in err


def test_show_tells_the_essentials(run: Run, folder: Path) -> None:
    code, out, err = run("show", folder)
    assert code == 0 and err == ""
    for said in ("hospital-a/cxr 1.0.0", "Hospital A", "16 x 16", "passed", "0.775", "clinical"):
        assert said in out, said
    assert "1234" not in out


def test_show_as_json_holds_manifest_and_findings(run: Run, folder: Path) -> None:
    code, out, _ = run("show", folder, "--json")
    value: dict[str, Any] = json.loads(out)
    assert code == 0
    assert value["manifest"]["name"] == "hospital-a/cxr"
    assert value["summary"][0]["accuracy"]["mean"] == pytest.approx(0.775)
    assert value["privacy"]["verdict"] == "passed" and value["verification"]["ok"]


def test_show_of_a_faulty_package_warns_and_leaves_with_3(run: Run, folder: Path) -> None:
    damage(folder)
    code, out, err = run("show", folder)
    assert code == 3
    assert "FAULTY" in out and "faults; see: ppdd package verify" in err


def test_export_and_import_carry_the_same_bytes(
    run: Run, folder: Path, built: Mapping[str, bytes], tmp_path: Path
) -> None:
    code, out, _ = run("export", folder)
    assert code == 0 and out.startswith("cxr-1.0.0.zip")
    code, out, _ = run("import", "cxr-1.0.0.zip")
    target = tmp_path / "home" / "packages" / "hospital-a" / "cxr" / "1.0.0"
    assert code == 0 and out.splitlines()[0] == str(target)
    assert dict(read_files(target).files) == dict(built)
    assert run("import", "cxr-1.0.0.zip")[0] == 0  # the same again changes nothing
    code, out, _ = run("import", "cxr-1.0.0.zip", "--into", "here", "--json")
    assert code == 0 and json.loads(out)["folder"] == "here"
    assert dict(read_files(Path("here")).files) == dict(built)


def test_another_content_of_the_same_version_is_refused(
    run: Run,
    folder: Path,
    built: Mapping[str, bytes],
    other_key: Ed25519PrivateKey,
    forge: Callable[..., dict[str, bytes]],
) -> None:
    assert run("import", folder)[0] == 0
    write_archive(forge(built, other_key), Path("forged.zip"))
    assert run("verify", "forged.zip")[0] == 0
    code, _, err = run("import", "forged.zip")
    assert code == 3 and "never changes" in err


def test_a_faulty_package_is_neither_exported_nor_imported(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    damage(folder)
    before = {path.name for path in tmp_path.iterdir()}
    for command in ("export", "import"):
        code, out, err = run(command, folder)
        assert code == 3 and out == "" and "cannot be used" in err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_export_overwrites_nothing(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    for place, says in (
        ("thesis.txt", "holds something else"),
        ("package", "is a folder"),
        ("thesis.txt/x.zip", "is not a folder"),
    ):
        code, out, err = run("export", folder, "--out", place)
        assert code == 3 and out == "" and says in err
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert run("export", folder)[0] == run("export", folder)[0] == 0  # the same again


def test_a_pipe_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    code, _, err = run("verify", tmp_path / "pipe")
    assert code == 3 and "special file" in err


def test_a_file_name_that_is_no_text_still_gives_json(run: Run, folder: Path) -> None:
    target = os.fsdecode(b"caf\xe9.zip")
    code, out, _ = run("export", folder, "--out", target, "--json")
    assert code == 0 and json.loads(out)["archive"] == "caf\\xe9.zip"
    assert Path(target).is_file()

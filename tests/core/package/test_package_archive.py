from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ppdd_core.errors import PackageError, UnsafeArchiveError
from ppdd_core.package import archive
from ppdd_core.package.archive import (
    PIECE,
    Files,
    Seen,
    path_problem,
    read_files,
    write_archive,
    write_folder,
)

FILES = {
    "previews/b.png": b"b",
    "README.md": b"# card",
    "manifest.json": b"{}",
    "previews/a.png": b"a",
    "signature.dsse.json": b"s",
}

HOSTILE_NAMES = [
    "../x",
    "a/../../b",
    "a/../b",
    "/etc/passwd",
    "//x",
    "C:\\x",
    "..\\x",
    "a\\b",
    "a//b",
    "./a",
    "a/.",
    "",
    ".",
    "..",
    ".hidden",
    "a/",
    "nul",
    "con.txt",
    "previews/LPT1.png",
    "x.",
    "x ",
    " x",
    "a\x00b",
    "a\nb",
    "tést.json",
    "te\u0301st.json",
    "a\u202egnp.js",
    "a/b/c",
    "x" * 201,
    "a:b",
    "~root",
    "$(id)",
    "-rf",
]


def zip_with(*entries: tuple[zipfile.ZipInfo | str, bytes], **options: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as made:  # type: ignore[call-overload]
        for name, data in entries:
            made.writestr(name, data)
    return buffer.getvalue()


def read_bytes(tmp_path: Path, data: bytes) -> archive.Contents:
    (tmp_path / "package.zip").write_bytes(data)
    return read_files(tmp_path / "package.zip")


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- the same package gives the same bytes -----------------------------------------------------------------


def test_archive_bytes_depend_on_content_only(tmp_path: Path) -> None:
    write_archive(FILES, tmp_path / "one.zip")
    write_archive(dict(reversed(FILES.items())), tmp_path / "other.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "other.zip").read_bytes()


def test_archive_entries_are_stored_in_fixed_order_time_and_mode(tmp_path: Path) -> None:
    write_archive(FILES, tmp_path / "package.zip")
    with zipfile.ZipFile(tmp_path / "package.zip") as made:
        entries = made.infolist()
    assert [entry.filename for entry in entries] == [
        "manifest.json",
        "signature.dsse.json",
        "README.md",
        "previews/a.png",
        "previews/b.png",
    ]
    assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
    assert {entry.external_attr >> 16 for entry in entries} == {stat.S_IFREG | 0o644}


def test_folder_and_archive_read_back_the_same(tmp_path: Path) -> None:
    write_archive(FILES, tmp_path / "package.zip")
    write_folder(FILES, tmp_path / "package")
    one, other = read_files(tmp_path / "package.zip"), read_files(tmp_path / "package")
    assert dict(one.files) == dict(other.files) == FILES
    assert list(one.files) == list(other.files)
    assert one.refused == other.refused == ()


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_hostile_names_are_refused_in_both_directions(tmp_path: Path, name: str) -> None:
    assert path_problem(name) is not None
    with pytest.raises(UnsafeArchiveError):
        write_folder({name: b"x"}, tmp_path / "package")
    with pytest.raises(UnsafeArchiveError):
        write_archive({name: b"x"}, tmp_path / "package.zip")
    assert snapshot(tmp_path) == set()
    if "\x00" not in name:
        found = read_bytes(tmp_path, zip_with((name or "/", b"x"), ("ok.json", b"{}")))
        assert dict(found.files) == {"ok.json": b"{}"}
        assert len(found.refused) == 1
        assert snapshot(tmp_path) == {"package.zip"}


def test_a_name_cut_by_a_zero_byte_is_not_shortened(tmp_path: Path) -> None:
    data = zip_with(("aaaa.json.exe", b"x")).replace(b"aaaa.json.exe", b"aaaa.json\x00exe")
    found = read_bytes(tmp_path, data)
    assert dict(found.files) == {}
    assert found.refused[0].where == "aaaa.json\x00exe"


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.text(alphabet=st.sampled_from("ab./\\:\x01~ \u202eé-_"), max_size=12))
@example(name="a/../../b")
def test_any_accepted_name_stays_inside(tmp_path: Path, name: str) -> None:
    if path_problem(name) is None:
        inside = (tmp_path / "root" / name).resolve()
        assert inside.is_relative_to(tmp_path / "root") and inside != tmp_path / "root"
        assert name == name.strip() and "\\" not in name


def test_names_that_differ_in_case_only_are_one_too_many(tmp_path: Path) -> None:
    found = read_bytes(tmp_path, zip_with(("a.json", b"1"), ("A.json", b"2")))
    assert dict(found.files) == {"a.json": b"1"}
    assert found.refused[0].reason == "another entry has the same name"
    with pytest.raises(UnsafeArchiveError, match="twice"):
        write_folder({"a.json": b"1", "A.json": b"2"}, tmp_path / "package")


# --- ZIP: what an enemy can write ----------------------------------------------------------------------------


def test_a_repeated_entry_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zip_with(("a.json", b"good"), ("a.json", b"evil"))
    found = read_bytes(tmp_path, data)
    assert dict(found.files) == {"a.json": b"good"}
    assert len(found.refused) == 1


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("link")
    entry.create_system = 3
    entry.external_attr = (kind | 0o777) << 16
    found = read_bytes(tmp_path, zip_with((entry, b"/etc/passwd")))
    assert dict(found.files) == {}
    assert found.refused[0].reason == "it is a link or a special file"


def test_a_bomb_is_refused_without_being_opened(tmp_path: Path) -> None:
    data = zip_with(("a.json", bytes(50_000_000)), compression=zipfile.ZIP_DEFLATED)
    started = time.perf_counter()
    found = read_bytes(tmp_path, data)
    assert time.perf_counter() - started < 0.5
    assert "compressed" in found.refused[0].reason and dict(found.files) == {}


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    data = bytearray(zip_with(("a.json", b"x")))
    data[6] |= 1  # local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # directory
    assert read_bytes(tmp_path, bytes(data)).refused[0].reason == "it is encrypted"


def forge_size(data: bytes) -> bytes:
    forged = bytearray(data)
    directory = forged.index(b"PK\x01\x02")
    struct.pack_into("<LL", forged, directory + 20, 100, 100)
    return bytes(forged)


def overlap(data: bytes) -> bytes:
    """Both entries of the directory point at the first one's bytes."""
    forged = bytearray(data)
    second = forged.index(b"PK\x01\x02", forged.index(b"PK\x01\x02") + 1)
    struct.pack_into("<L", forged, second + 42, 0)
    return bytes(forged)


def hide_before_directory(data: bytes) -> bytes:
    directory = data.index(b"PK\x01\x02")
    forged = bytearray(data[:directory] + b"hidden" + data[directory:])
    struct.pack_into("<L", forged, len(forged) - 6, directory + 6)
    return bytes(forged)


def rename_locally(data: bytes) -> bytes:
    return data.replace(b"a.json", b"z.json", 1)


def announce(count: int) -> Callable[[bytes], bytes]:
    def plant(data: bytes) -> bytes:
        forged = bytearray(data)
        struct.pack_into("<HH", forged, len(forged) - 14, count, count)
        return bytes(forged)

    return plant


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(forge_size, id="forged size"),
        pytest.param(overlap, id="overlapping entries"),
        pytest.param(hide_before_directory, id="bytes between entries and directory"),
        pytest.param(rename_locally, id="two names for one entry"),
        pytest.param(lambda data: b"#!/bin/sh\n" + data, id="program in front"),
        pytest.param(lambda data: data + b"tail", id="bytes behind"),
        pytest.param(lambda data: data[:-30], id="cut off"),
        pytest.param(announce(20_000), id="more entries than allowed"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda _: b"\x80\x04\x95" + bytes(60), id="pickle"),
        pytest.param(lambda _: bytes(70_000), id="zeros"),
    ],
)
def test_a_zip_that_lies_is_refused_as_a_whole(
    tmp_path: Path, plant: Callable[[bytes], bytes]
) -> None:
    good = zip_with(("a.json", b"x" * 50), ("b.json", b"y"))
    assert set(read_bytes(tmp_path, good).files) == {"a.json", "b.json"}
    with pytest.raises(UnsafeArchiveError, match=r"^package\.zip: "):
        read_bytes(tmp_path, plant(good))


def test_bytes_that_are_no_zip_are_told_what_a_package_is(tmp_path: Path) -> None:
    good = zip_with(("a.json", b"x" * 50))
    cut_inside = good[:20] + good[-22:]  # the end record points at a directory that is gone
    for data in (b"", b"\x89PNG" + bytes(range(200)), good[: len(good) // 2], cut_inside):
        with pytest.raises(
            UnsafeArchiveError,
            match=r"a package is a folder, or a ZIP made by: ppdd package export",
        ):
            read_bytes(tmp_path, data)


def test_a_changed_byte_inside_an_entry_is_refused(tmp_path: Path) -> None:
    data = zip_with(("a.json", b"hello")).replace(b"hello", b"hallo")
    assert read_bytes(tmp_path, data).refused[0].reason == "its bytes do not fit their checksum"


def test_a_zip_comment_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a.json", b"x")
        made.comment = b"hidden"
    with pytest.raises(UnsafeArchiveError):
        read_bytes(tmp_path, buffer.getvalue())


def test_too_many_entries_and_too_many_bytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_archive(FILES, tmp_path / "package.zip")
    write_folder(FILES, tmp_path / "package")
    for name, limit in (("MAX_ENTRIES", 4), ("MAX_TOTAL_BYTES", 8)):
        with monkeypatch.context() as patch:
            patch.setattr(archive, name, limit)
            for path in ("package.zip", "package"):
                with pytest.raises(UnsafeArchiveError):
                    read_files(tmp_path / path)
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 3)
    for path in ("package.zip", "package"):
        assert {entry.where for entry in read_files(tmp_path / path).refused} == {"README.md"}


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_zip_never_raises_anything_but_ours(
    tmp_path: Path, position: int, byte: int
) -> None:
    data = bytearray(zip_with(("a.json", b"x" * 50), ("previews/b.png", b"y" * 20)))
    data[position % len(data)] = byte
    try:
        found = read_bytes(tmp_path, bytes(data))
    except PackageError:
        return
    assert all(path_problem(name) is None for name in found.files)


# --- folders ---------------------------------------------------------------------------------------------------


def test_links_sockets_and_deep_folders_are_not_read(tmp_path: Path) -> None:
    write_folder(FILES, tmp_path / "package")
    folder = tmp_path / "package"
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "x.json").write_bytes(b"secret")
    (folder / "link.json").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path / "private")
    os.mkfifo(folder / "pipe.json")
    (folder / "previews" / "deeper").mkdir()
    (folder / ".hidden").mkdir()
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "previews" / "a b.png").write_bytes(b"x")
    found = read_files(folder)
    assert dict(found.files) == FILES
    assert {entry.where for entry in found.refused} == {
        "link.json",
        "linked",
        "pipe.json",
        "previews/deeper",
        ".hidden/",
        ".DS_Store",
        "previews/a b.png",
    }


def test_an_empty_folder_in_a_package_is_refused(tmp_path: Path) -> None:
    write_folder(FILES, tmp_path / "package")
    (tmp_path / "package" / "extra").mkdir()
    found = read_files(tmp_path / "package")
    assert dict(found.files) == FILES
    assert [(entry.where, entry.reason) for entry in found.refused] == [
        ("extra/", "it is an empty folder; packages have none")
    ]


def test_a_pipe_or_a_device_in_the_package_s_place_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(PackageError, match="a pipe or another special file"):
            read_files(path)


def test_a_socket_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path / "p")  # a socket's path has a short limit
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("sock")
        assert [entry.where for entry in read_files(tmp_path / "p").refused] == ["sock"]


# --- whole or not at all -----------------------------------------------------------------------------------------


def test_writing_the_same_folder_again_changes_nothing(tmp_path: Path) -> None:
    write_folder(FILES, tmp_path / "package")
    before = (tmp_path / "package").stat().st_ino
    write_folder(FILES, tmp_path / "package")
    assert (tmp_path / "package").stat().st_ino == before


def test_a_package_never_changes(tmp_path: Path) -> None:
    write_folder(FILES, tmp_path / "package")
    for other in ({**FILES, "README.md": b"other"}, {"README.md": b"# card"}, {**FILES, "x": b""}):
        with pytest.raises(PackageError, match="never changes"):
            write_folder(other, tmp_path / "package")
    assert dict(read_files(tmp_path / "package").files) == FILES


def test_of_two_contents_written_at_once_one_wins_whole(tmp_path: Path) -> None:
    contents = [FILES, {**FILES, "README.md": b"other"}]
    start, lost = threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        try:
            write_folder(contents[number % 2], tmp_path / "package")
        except PackageError:
            lost.append(number % 2)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = contents.index(dict(read_files(tmp_path / "package").files))
    assert lost == [1 - winner] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_an_empty_folder_is_filled_and_a_file_or_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_folder(FILES, tmp_path / "empty")
    assert dict(read_files(tmp_path / "empty").files) == FILES
    (tmp_path / "file").write_bytes(b"keep")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(PackageError):
            write_folder(FILES, tmp_path / name)
    assert (tmp_path / "file").read_bytes() == b"keep"


def test_a_killed_writer_leaves_no_package_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from ppdd_core.package import archive\n"
        "def die(path, data, count=[0]):\n"
        "    count[0] += 1\n"
        "    if count[0] == 3: os.kill(os.getpid(), 9)\n"
        "    path.write_bytes(b''.join(data))\n"
        "archive._write_new = die\n"
        "archive.write_folder({f'{n}.json': b'x' for n in range(9)}, pathlib.Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "package")], check=False)
    assert done.returncode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert [path.name.startswith(".package.partial-") for path in left] == [True]
    write_folder(FILES, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["package"]
    assert dict(read_files(tmp_path / "package").files) == FILES


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with archive._partial_folder(tmp_path / "package") as busy:
        write_folder(FILES, tmp_path / "package")
        assert busy.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_a_full_disk_leaves_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_archive(FILES, tmp_path / "package.zip")
    assert list(tmp_path.iterdir()) == []


def without_hard_links(source: object, target: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("hard_links", [True, False])
def test_an_archive_is_never_written_over_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", without_hard_links)
    path = tmp_path / "package.zip"
    write_archive(FILES, path)
    before, inode = path.read_bytes(), path.stat().st_ino
    write_archive(FILES, path)  # the same bytes again change nothing
    assert path.stat().st_ino == inode
    with pytest.raises(PackageError, match="holds something else"):
        write_archive({**FILES, "README.md": b"# Card"}, path)  # as long as the old one
    assert path.read_bytes() == before
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "link.zip").symlink_to(path)
    for name in ("thesis.txt", "link.zip"):
        with pytest.raises(PackageError, match="holds something else"):
            write_archive(FILES, tmp_path / name)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert snapshot(tmp_path) == {"package.zip", "thesis.txt", "link.zip"}


def test_a_place_where_no_file_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(PackageError, match="is a folder; name the file to write"):
        write_archive(FILES, tmp_path / "folder")
    (tmp_path / "file").write_bytes(b"keep")
    for place in ("file/x", "file/deeper/x"):
        for write in (write_archive, write_folder):
            with pytest.raises(PackageError, match="is not a folder or lies in a file"):
                write(FILES, tmp_path / place)
    assert snapshot(tmp_path) == {"folder", "file"}


# --- without holding it in memory ------------------------------------------------------------------------


def peak_bytes(work: Callable[[], object]) -> int:
    """Return how much memory `work` held at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_large_file_is_written_read_and_written_again_in_pieces(
    kind: str, tmp_path: Path
) -> None:
    size, block = 96 * PIECE, bytes(PIECE)
    digest = hashlib.sha256()
    for _ in range(size // PIECE):
        digest.update(block)
    files = Files({"a.bin": Seen(size, digest.hexdigest())}, lambda _p, _s, length: bytes(length))
    write = write_folder if kind == "folder" else write_archive

    def pass_on() -> None:
        write(files, tmp_path / "one")
        found = read_files(tmp_path / "one")
        assert found.files.sha256("a.bin") == digest.hexdigest()
        write(found.files, tmp_path / "other")
        assert found.files.part("a.bin", size - 3, 9) == bytes(3)

    assert peak_bytes(pass_on) < 8 * PIECE


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_is_read_later_is_what_was_seen_first(kind: str, tmp_path: Path) -> None:
    path, lying = tmp_path / "package", tmp_path / "package"
    if kind == "folder":
        write_folder(FILES, path)
        lying = path / "manifest.json"
    else:
        write_archive(FILES, path)
    files = read_files(path).files
    assert dict(files) == FILES
    with lying.open("r+b") as file:
        file.seek(lying.read_bytes().index(FILES["manifest.json"]))
        file.write(b"#")
    with pytest.raises(PackageError, match="manifest.json was changed while it was read"):
        files["manifest.json"]
    with pytest.raises(PackageError, match="manifest.json was changed while it was read"):
        list(files.pieces("manifest.json"))
    with pytest.raises(PackageError, match="manifest.json was changed"):
        write_archive(files, tmp_path / "copy.zip")
    assert not (tmp_path / "copy.zip").exists()


def test_a_package_that_is_gone_can_be_read_on(tmp_path: Path) -> None:
    write_archive(FILES, tmp_path / "package.zip")
    write_folder(FILES, tmp_path / "package")
    archived, lying = (read_files(tmp_path / name).files for name in ("package.zip", "package"))
    (tmp_path / "package.zip").unlink()
    assert dict(archived) == FILES
    shutil.rmtree(tmp_path / "package")
    with pytest.raises(PackageError, match="cannot be read"):
        lying["manifest.json"]

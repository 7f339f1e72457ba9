from __future__ import annotations

import io
import json
import pickle  # noqa: TID251 - planted, never unpickled
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image, PngImagePlugin
from safetensors.numpy import load, save

from ppdd_core.errors import PackageError, SignatureError
from ppdd_core.package import archive, canonical
from ppdd_core.package.archive import Seen, in_files, write_archive, write_folder
from ppdd_core.package.manifest import (
    CARD,
    CONTACT_SHEET,
    CROISSANT,
    EVALUATION,
    MANIFEST,
    PRIVACY,
    SIGNATURE,
    TENSORS,
    preview_path,
)
from ppdd_core.package.signature import fingerprint, sign
from ppdd_core.package.verify import Verification, open_verified, verify_files, verify_package

Files = dict[str, bytes]
Forge = Callable[..., Files]


def codes(found: Verification) -> set[tuple[str, str]]:
    return {(fault.code, fault.where) for fault in found.faults}


def test_a_whole_package_has_no_fault(built: Mapping[str, bytes], key: Ed25519PrivateKey) -> None:
    found = verify_files(built)
    assert found.faults == ()
    assert found.ok and not found.trusted
    assert found.signer == f"signed by unknown key {fingerprint(key)}"


def test_a_pinned_key_is_trusted(built: Mapping[str, bytes], key: Ed25519PrivateKey) -> None:
    found = verify_files(built, trusted_key=fingerprint(key))
    assert found.ok and found.trusted
    assert found.signer.startswith("signed by the pinned key")


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_byte_is_found_in_every_file(built: Mapping[str, bytes], where: str) -> None:
    for path, data in built.items():
        position = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[where]
        changed = bytearray(data)
        changed[position] ^= 0x01
        found = verify_files({**built, path: bytes(changed)})
        blamed = SIGNATURE if path == MANIFEST else path
        assert blamed in {fault.where for fault in found.faults}, path


def test_every_file_is_missed_by_name(built: Mapping[str, bytes]) -> None:
    for path in built:
        found = verify_files({name: data for name, data in built.items() if name != path})
        assert ("missing_file", path) in codes(found)


# --- faults under a valid signature: what a dishonest site could sign ------------------------------------


def change_tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Files], object]:
    def plant(files: Files) -> None:
        arrays = {name: array.copy() for name, array in load(files[TENSORS]).items()}
        change(arrays)
        files[TENSORS] = save(arrays)

    return plant


def change_json(path: str, change: Callable[[Any], object]) -> Callable[[Files], object]:
    def plant(files: Files) -> None:
        value = json.loads(files[path])
        change(value)
        files[path] = canonical.dump(value)

    return plant


def put(path: str, data: bytes) -> Callable[[Files], object]:
    return lambda files: files.update({path: data})


def swap(one: str, other: str) -> Callable[[Files], object]:
    return lambda files: files.update({one: files[other], other: files[one]})


def set_pixel(value: float) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda arrays: arrays["images"].__setitem__((1, 0, 2, 3), value)


def png(**options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16), 40).save(buffer, "PNG", **options)
    return buffer.getvalue()


def text_chunk() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", "Jane Doe")
    return info


def retype(files: Files) -> None:
    header = bytearray(files[TENSORS])
    at = header.index(b'"F32"')
    header[at : at + 5] = b'"I32"'
    files[TENSORS] = bytes(header)


def long_header(files: Files) -> None:
    files[TENSORS] = struct.pack("<Q", 2**40) + files[TENSORS][8:]


def double_key(files: Files) -> None:
    files[EVALUATION] = files[EVALUATION].replace(b'"split"', b'"split":"test","split"', 1)


def drop(name: str) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda arrays: arrays.pop(name)


def become(name: str, value: np.ndarray) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda arrays: arrays.__setitem__(name, value)


def of_type(dtype: str) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda arrays: arrays.__setitem__("images", arrays["images"].astype(dtype))


def beyond(value: Any) -> None:
    value["measurements"][0]["passed"] = False


def better(value: Any) -> None:
    value["summary"][0]["accuracy"]["mean"] = 0.99


SIGNED_FAULTS: dict[str, tuple[Callable[[Files], object], str, str]] = {
    "NaN in an image": (change_tensors(set_pixel(np.nan)), "image_not_finite", TENSORS),
    "infinity in an image": (change_tensors(set_pixel(np.inf)), "image_not_finite", TENSORS),
    "absurd pixel": (change_tensors(set_pixel(1e6)), "image_out_of_range", TENSORS),
    "label too large": (
        change_tensors(lambda a: a["labels"].__setitem__(0, 3)),
        "label_out_of_range",
        TENSORS,
    ),
    "label negative": (
        change_tensors(lambda a: a["labels"].__setitem__(0, -1)),
        "label_out_of_range",
        TENSORS,
    ),
    "label moved": (
        change_tensors(lambda a: a["labels"].__setitem__(0, 1)),
        "label_count",
        TENSORS,
    ),
    "learning rate NaN": (
        change_tensors(become("learning_rate", np.array([np.nan], "<f4"))),
        "learning_rate",
        TENSORS,
    ),
    "learning rate huge": (
        change_tensors(become("learning_rate", np.array([1e9], "<f4"))),
        "learning_rate",
        TENSORS,
    ),
    "learning rate negative": (
        change_tensors(become("learning_rate", np.array([-0.1], "<f4"))),
        "learning_rate",
        TENSORS,
    ),
    "learning rate not the manifest's": (
        change_tensors(become("learning_rate", np.array([0.05], "<f4"))),
        "learning_rate",
        TENSORS,
    ),
    "two learning rates": (
        change_tensors(become("learning_rate", np.array([0.01, 0.01], "<f4"))),
        "tensors",
        TENSORS,
    ),
    "other shape": (
        change_tensors(lambda a: a.update(images=a["images"][..., :8])),
        "tensors",
        TENSORS,
    ),
    "fewer images": (
        change_tensors(lambda a: a.update(images=a["images"][:4], labels=a["labels"][:4])),
        "tensors",
        TENSORS,
    ),
    "other dtype": (change_tensors(of_type("<f2")), "tensors", TENSORS),
    "whole-number images": (change_tensors(of_type("<i8")), "tensors", TENSORS),
    "tensor missing": (change_tensors(drop("labels")), "tensors", TENSORS),
    "tensor too many": (change_tensors(become("code", np.zeros(1, "<f4"))), "tensors", TENSORS),
    "unknown tensor type": (retype, "tensors", TENSORS),
    "header length beyond the file": (long_header, "tensors", TENSORS),
    "bytes after the tensors": (
        lambda files: files.update({TENSORS: files[TENSORS] + b"MZ"}),
        "tensors",
        TENSORS,
    ),
    "pickle renamed": (put(TENSORS, pickle.dumps({"images": [1]})), "tensors", TENSORS),
    "empty tensors": (put(TENSORS, b""), "tensors", TENSORS),
    "preview with text": (
        put(preview_path(0), png(pnginfo=text_chunk())),
        "preview",
        preview_path(0),
    ),
    "preview of something else": (put(preview_path(0), png()), "preview", preview_path(0)),
    "previews swapped": (
        swap(preview_path(0), preview_path(5)),
        "preview",
        preview_path(5),
    ),
    "preview with bytes behind": (
        lambda files: files.update({preview_path(1): files[preview_path(1)] + b"PK\x03\x04"}),
        "preview",
        preview_path(1),
    ),
    "contact sheet is a JPEG": (put(CONTACT_SHEET, b"\xff\xd8\xff\xe0"), "preview", CONTACT_SHEET),
    "privacy verdict contradicts": (change_json(PRIVACY, beyond), "privacy", PRIVACY),
    "privacy of another start": (
        change_json(PRIVACY, lambda v: v.update(initialisation="real")),
        "privacy",
        PRIVACY,
    ),
    "privacy without measurements": (
        change_json(PRIVACY, lambda v: v.update(measurements=[])),
        "privacy",
        PRIVACY,
    ),
    "passed without a threshold": (
        change_json(PRIVACY, lambda v: v["measurements"][0].update(threshold=None)),
        "privacy",
        PRIVACY,
    ),
    "failed without a reason": (
        change_json(PRIVACY, lambda v: v.update(verdict="failed")),
        "privacy",
        PRIVACY,
    ),
    "privacy is not JSON": (put(PRIVACY, b"passed"), "privacy", PRIVACY),
    "evaluation summary polished": (change_json(EVALUATION, better), "evaluation", EVALUATION),
    "evaluation contradicts its matrix": (
        change_json(EVALUATION, lambda v: v["results"][0].update(confusion=[[20] * 3] * 3)),
        "evaluation",
        EVALUATION,
    ),
    "evaluation of other classes": (
        change_json(EVALUATION, lambda v: v.update(classes=["a", "b", "c"])),
        "evaluation",
        EVALUATION,
    ),
    "accuracy above one": (
        change_json(EVALUATION, lambda v: v["results"][0].update(accuracy=1.5)),
        "evaluation",
        EVALUATION,
    ),
    "evaluation says a key twice": (double_key, "evaluation", EVALUATION),
    "evaluation with NaN": (put(EVALUATION, b'{"format_version":NaN}'), "evaluation", EVALUATION),
    "croissant allows more": (
        change_json(CROISSANT, lambda v: v["usageInfo"].pop()),
        "croissant",
        CROISSANT,
    ),
    "croissant names other bytes": (
        change_json(CROISSANT, lambda v: v["distribution"][0].update(sha256="0" * 64)),
        "croissant",
        CROISSANT,
    ),
    "script in the card": (
        lambda files: files.update({CARD: files[CARD] + b"<script>alert(1)</script>"}),
        "card",
        CARD,
    ),
    "link in the card": (
        lambda files: files.update({CARD: files[CARD] + b"[more](https://example.org)"}),
        "card",
        CARD,
    ),
    "card is not text": (put(CARD, b"\xff\xfe"), "card", CARD),
}


@pytest.mark.parametrize("name", SIGNED_FAULTS)
def test_names_the_fault_even_where_the_signature_holds(
    files: Files, key: Ed25519PrivateKey, forge: Forge, name: str
) -> None:
    plant, code, where = SIGNED_FAULTS[name]
    before = dict(files)
    plant(files)
    assert files != before
    found = verify_files(forge(files, key))
    assert (code, where) in codes(found)
    assert found.key == fingerprint(key)
    assert not {fault.code for fault in found.faults} & {"signature", "changed_file"}


def test_finds_several_faults_at_once(files: Files, key: Ed25519PrivateKey, forge: Forge) -> None:
    for name in ("NaN in an image", "privacy verdict contradicts", "script in the card"):
        SIGNED_FAULTS[name][0](files)
    found = verify_files(forge(files, key))
    assert codes(found) >= {
        ("image_not_finite", TENSORS),
        ("privacy", PRIVACY),
        ("card", CARD),
    }


# --- signatures and mix-and-match ----------------------------------------------------------------------


def test_another_key_is_named_and_refused_where_one_is_pinned(
    files: Files, key: Ed25519PrivateKey, other_key: Ed25519PrivateKey, forge: Forge
) -> None:
    forged = forge(files, other_key)
    assert verify_files(forged).ok  # a package by somebody, but not by whom we trust
    assert codes(verify_files(forged, trusted_key=fingerprint(key))) == {
        ("untrusted_key", SIGNATURE)
    }


def test_a_manifest_must_name_the_key_that_signed_it(
    files: Files, other_key: Ed25519PrivateKey
) -> None:
    files[SIGNATURE] = sign(files[MANIFEST], other_key)
    assert codes(verify_files(files)) == {("other_key", SIGNATURE)}


def test_the_signature_of_another_version_does_not_fit(
    files: Files, key: Ed25519PrivateKey, forge: Forge
) -> None:
    newer = forge(files, key, lambda manifest: manifest.update(version="1.0.1"))
    files[SIGNATURE] = newer[SIGNATURE]
    assert ("signature", SIGNATURE) in codes(verify_files(files))


def test_a_file_of_another_package_does_not_fit(
    files: Files, key: Ed25519PrivateKey, forge: Forge
) -> None:
    other = dict(files)
    change_tensors(set_pixel(0.5))(other)
    other = forge(other, key)
    found = verify_files({**files, TENSORS: other[TENSORS]})
    assert ("changed_file", TENSORS) in codes(found)


def test_files_swapped_in_place_are_both_named(files: Files) -> None:
    swap(EVALUATION, PRIVACY)(files)
    assert codes(verify_files(files)) >= {("changed_file", EVALUATION), ("changed_file", PRIVACY)}


def test_an_extra_file_is_named(files: Files) -> None:
    files["run.py"] = b"import os"
    assert codes(verify_files(files)) == {("extra_file", "run.py")}


def test_hashes_are_checked_under_a_broken_manifest_too(files: Files) -> None:
    value = json.loads(files[MANIFEST])
    value["version"] = "latest"
    files[MANIFEST] = canonical.dump(value)
    files[PRIVACY] += b" "
    found = verify_files(files)
    assert codes(found) >= {
        ("manifest", MANIFEST),
        ("changed_file", PRIVACY),
        ("signature", SIGNATURE),
    }
    assert found.manifest is None


def test_a_broken_manifest_is_the_fault_and_not_every_file_beside_it(files: Files) -> None:
    files[MANIFEST] = b"{"
    files[TENSORS] = b"junk"
    assert codes(verify_files(files)) == {
        ("manifest", MANIFEST),
        ("signature", SIGNATURE),
        ("tensors", TENSORS),
    }


def test_a_wrong_size_is_found_beside_a_right_hash(
    files: Files, key: Ed25519PrivateKey, forge: Forge
) -> None:
    forged = forge(files, key, lambda m: m["files"][PRIVACY].update(size=len(files[PRIVACY]) + 1))
    assert codes(verify_files(forged)) == {("changed_file", PRIVACY)}


def test_labels_must_be_of_the_kind_stated(
    files: Files, key: Ed25519PrivateKey, forge: Forge
) -> None:
    soft = np.eye(3, dtype="<f4").repeat(2, axis=0)
    change_tensors(become("labels", soft))(files)
    other_bytes = {("croissant", CROISSANT)}  # it names the hard labels' file
    assert codes(verify_files(forge(files, key))) == {("tensors", TENSORS)} | other_bytes
    stated = forge(files, key, lambda m: m["images"].update(labels="soft"))
    assert codes(verify_files(stated)) == other_bytes


def test_a_card_has_bounds(files: Files, key: Ed25519PrivateKey, forge: Forge) -> None:
    files[CARD] = b"x" * (2**20 + 1)
    assert codes(verify_files(forge(files, key))) == {("card", CARD)}


def test_nothing_at_all_is_named_too() -> None:
    found = verify_files({})
    assert codes(found) == {("missing_file", MANIFEST)}
    assert found.signer == "not signed by anyone"


def test_an_expired_permission_is_a_fault_from_the_next_day_on(
    built: Mapping[str, bytes],
) -> None:
    assert verify_files(built, today=date(2027, 12, 31)).ok
    assert codes(verify_files(built, today=date(2028, 1, 1))) == {("expired", MANIFEST)}


def test_a_failed_privacy_verdict_is_a_note_and_no_fault(
    files: Files, key: Ed25519PrivateKey, forge: Forge
) -> None:
    def fail(value: Any) -> None:
        beyond(value)
        value.update(verdict="failed", reasons=["membership inference may reach 0.7"])

    change_json(PRIVACY, fail)(files)
    found = verify_files(forge(files, key))
    assert found.ok
    assert found.notes == ("the privacy verdict of this package is: failed",)


def test_random_bytes_in_any_file_raise_nothing(built: Mapping[str, bytes]) -> None:
    rng = np.random.default_rng(3)
    for path in built:
        for length in (0, 1, 9, 500):
            assert not verify_files({**built, path: rng.bytes(length)}).ok


# --- on disk -------------------------------------------------------------------------------------------


def test_folder_and_archive_verify_alike(built: Mapping[str, bytes], tmp_path: Path) -> None:
    write_folder(built, tmp_path / "package")
    write_archive(built, tmp_path / "package.zip")
    one, other = verify_package(tmp_path / "package"), verify_package(tmp_path / "package.zip")
    assert one.ok and one == other


def test_a_cut_off_archive_is_a_fault_at_every_length(
    built: Mapping[str, bytes], tmp_path: Path
) -> None:
    write_archive(built, tmp_path / "package.zip")
    whole = (tmp_path / "package.zip").read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.zip").write_bytes(whole[:length])
        found = verify_package(tmp_path / "cut.zip")
        assert [fault.code for fault in found.faults] == ["unsafe_archive"]


def test_unsafe_entries_are_named_beside_the_other_faults(
    built: Mapping[str, bytes], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        for path, data in built.items():
            if path != PRIVACY:
                archive.writestr(path, data)
        archive.writestr("../outside", b"x")
    found = verify_package(tmp_path / "evil.zip")
    assert codes(found) == {("unsafe_entry", "../outside"), ("missing_file", PRIVACY)}


def test_a_link_in_a_folder_is_not_followed(built: Mapping[str, bytes], tmp_path: Path) -> None:
    write_folder(built, tmp_path / "package")
    target = tmp_path / "package" / PRIVACY
    shutil.copy(target, tmp_path / "elsewhere")
    target.unlink()
    target.symlink_to(tmp_path / "elsewhere")
    found = verify_package(tmp_path / "package")
    assert codes(found) == {("unsafe_entry", PRIVACY), ("missing_file", PRIVACY)}


def test_no_package_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="there is no package"):
        verify_package(tmp_path / "nothing")


def test_opening_names_the_first_faults(built: Mapping[str, bytes], tmp_path: Path) -> None:
    write_folder(built, tmp_path / "package")
    (tmp_path / "package" / PRIVACY).write_bytes(b"{}")
    with pytest.raises(PackageError, match=r"privacy\.json: it was changed"):
        open_verified(tmp_path / "package")


def test_opening_with_another_pin_is_a_signature_error(
    built: Mapping[str, bytes], tmp_path: Path, other_key: Ed25519PrivateKey
) -> None:
    write_folder(built, tmp_path / "package")
    with pytest.raises(SignatureError, match="expected was"):
        open_verified(tmp_path / "package", trusted_key=fingerprint(other_key))
    with pytest.raises(SignatureError, match="64 hex digits"):
        open_verified(tmp_path / "package", trusted_key="abc")


def test_verifying_imports_no_torch(built: Mapping[str, bytes], tmp_path: Path) -> None:
    write_folder(built, tmp_path / "package")
    code = (
        "import sys; from ppdd_core import verify_package; "
        "assert verify_package(sys.argv[1]).ok; assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "package")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_without_a_manifest_is_said_to_be_no_package(
    built: Mapping[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "xrays").mkdir()
    for number in range(3):
        (tmp_path / "xrays" / f"scan {number}.png").write_bytes(b"x")
    write_folder(built, tmp_path / "package")
    (tmp_path / "package" / MANIFEST).unlink()
    write_archive(
        {path: data for path, data in built.items() if path != MANIFEST}, tmp_path / "package.zip"
    )
    for name in ("xrays", "package", "package.zip"):
        (fault,) = verify_package(tmp_path / name).faults
        assert (fault.code, fault.where) == ("missing_file", MANIFEST)
        assert "this is not a package" in fault.sentence
        with pytest.raises(PackageError, match="this is not a package"):
            open_verified(tmp_path / name)


def test_an_empty_folder_in_a_package_is_a_fault(
    built: Mapping[str, bytes], tmp_path: Path
) -> None:
    write_folder(built, tmp_path / "package")
    (tmp_path / "package" / "extra").mkdir()
    assert codes(verify_package(tmp_path / "package")) == {("unsafe_entry", "extra/")}


def test_a_file_that_is_no_zip_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "random.zip").write_bytes(b"random")
    (fault,) = verify_package(tmp_path / "random.zip").faults
    assert str(fault).startswith("random.zip: it is not a whole ZIP file")


@pytest.mark.parametrize(
    ("path", "code", "most"),
    [
        (MANIFEST, "manifest", 4 * 2**20),
        (SIGNATURE, "signature", 8 * 2**20),
        (PRIVACY, "privacy", 8 * 2**20),
        (preview_path(0), "preview", 4 * 2**20),
    ],
)
def test_a_file_that_should_be_small_is_not_read_when_it_is_not(
    built: Mapping[str, bytes], path: str, code: str, most: int
) -> None:
    asked: list[str] = []
    held = in_files({**built, path: bytes(most + 1)})

    def read(name: str, start: int, length: int) -> bytes:
        asked.append(name)
        return held.part(name, start, length)

    seen = {name: Seen(held.size(name), held.sha256(name)) for name in held}
    found = verify_files(archive.Files(seen, read))
    assert (code, path) in codes(found)
    assert f"{most + 1} bytes; at most {most} are allowed" in str(found.faults)
    assert path not in asked

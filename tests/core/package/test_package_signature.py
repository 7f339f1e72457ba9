from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from ppdd_core.errors import SignatureError
from ppdd_core.package import canonical
from ppdd_core.package.signature import (
    encode_for_signing,
    fingerprint,
    load_or_create_key,
    open_envelope,
    parse_fingerprint,
    printable,
    sign,
)

PAYLOAD = b'{"name":"hospital-a/cxr"}'


def test_a_signature_opens_to_payload_and_signer(key: Ed25519PrivateKey) -> None:
    signed = open_envelope(sign(PAYLOAD, key))
    assert signed.payload == PAYLOAD
    assert signed.key == fingerprint(key)


def test_the_same_key_and_payload_give_the_same_bytes(key: Ed25519PrivateKey) -> None:
    assert sign(PAYLOAD, key) == sign(PAYLOAD, key)


def test_encoding_is_that_of_dsse() -> None:
    assert encode_for_signing(b"hello") == b"DSSEv1 34 application/vnd.ppdd.manifest+json 5 hello"


def test_known_fingerprint_of_a_known_key() -> None:
    # RFC 8032, 7.1, test 1: public key d75a98…; its sha256 was computed with sha256sum
    secret = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret))
    assert fingerprint(key) == "21fe31dfa154a261626bf854046fd2271b7bed4b6abe45aa58877ef47f9721b9"


def test_fingerprints_read_as_people_write_them(key: Ed25519PrivateKey) -> None:
    plain = fingerprint(key)
    for text in (printable(plain), plain.upper(), ":".join(plain), f" {plain}\n"):
        assert parse_fingerprint(text) == plain
    assert [len(group) for group in printable(plain).split()] == [4] * 16
    for wrong in ("", plain[:-1], plain + "0", "g" * 64, "SHA256:" + plain):
        with pytest.raises(SignatureError, match="64 hex digits"):
            parse_fingerprint(wrong)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def plant(envelope: bytes) -> bytes:
        value = json.loads(envelope)
        change(value)
        return canonical.dump(value)

    return plant


def flip(name: str) -> Callable[[dict[str, Any]], object]:
    def change(value: dict[str, Any]) -> None:
        data = bytearray(base64.b64decode(value["signatures"][0][name]))
        data[3] ^= 1
        value["signatures"][0][name] = base64.b64encode(data).decode()

    return change


def other_public_key(value: dict[str, Any]) -> None:
    public = Ed25519PrivateKey.from_private_bytes(b"x" * 32).public_key().public_bytes_raw()
    value["signatures"][0]["public_key"] = base64.b64encode(public).decode()


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(edit(flip("sig")), id="changed signature"),
        pytest.param(edit(flip("public_key")), id="changed public key"),
        pytest.param(edit(other_public_key), id="other public key under the old id"),
        pytest.param(
            edit(lambda v: v.update(payload=base64.b64encode(b"{}").decode())), id="other payload"
        ),
        pytest.param(edit(lambda v: v.update(payloadType="application/json")), id="other type"),
        pytest.param(edit(lambda v: v["signatures"].clear()), id="no signature"),
        pytest.param(edit(lambda v: v["signatures"].append(v["signatures"][0])), id="two"),
        pytest.param(edit(lambda v: v["signatures"][0].pop("keyid")), id="no key id"),
        pytest.param(edit(lambda v: v["signatures"][0].update(keyid="0" * 64)), id="other key id"),
        pytest.param(edit(lambda v: v["signatures"][0].update(alg="none")), id="unknown field"),
        pytest.param(edit(lambda v: v["signatures"][0].update(sig="")), id="empty signature"),
        pytest.param(edit(lambda v: v["signatures"][0].update(sig=None)), id="null signature"),
        pytest.param(edit(lambda v: v.update(payload=v["payload"] + "\n")), id="loose base64"),
        pytest.param(edit(lambda v: v.update(signatures={})), id="signatures no list"),
        pytest.param(lambda _: b"[]", id="no object"),
        pytest.param(lambda envelope: envelope[:-4], id="cut off"),
    ],
)
def test_refuses_an_envelope(key: Ed25519PrivateKey, plant: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SignatureError):
        open_envelope(plant(sign(PAYLOAD, key)))


def test_a_key_is_made_once_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "site" / "signing.pem"
    made = load_or_create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert fingerprint(load_or_create_key(path)) == fingerprint(made)
    assert [entry.name for entry in path.parent.iterdir()] == ["signing.pem"]


def test_all_who_create_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    found: list[str] = []
    start = threading.Barrier(8)

    def create() -> None:
        start.wait()
        found.append(fingerprint(load_or_create_key(tmp_path / "key.pem")))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(SignatureError, match="chmod 600"):
        load_or_create_key(path)


def test_a_container_secret_may_have_any_mode(tmp_path: Path) -> None:
    """A file on a read-only mount: its mode is decided outside, and nobody else is inside."""
    mount = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount in a namespace of their own")
    key = load_or_create_key(tmp_path / "secrets" / "key.pem")
    (tmp_path / "secrets" / "key.pem").chmod(0o644)
    read = (
        "import sys, pathlib; from ppdd_core.package.signature import *; "
        "print(fingerprint(load_or_create_key(pathlib.Path(sys.argv[1]))))"
    )
    script = (
        'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && exec "$2" -c "$3" "$1/key.pem"'
    )
    done = subprocess.run(
        [*mount, "sh", "-c", script, "sh", str(tmp_path / "secrets"), sys.executable, read],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == fingerprint(key)


def pem(key: Any, encryption: Any = None) -> bytes:
    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", id="junk"),
        pytest.param(pem(X25519PrivateKey.generate()), id="another kind of key"),
        pytest.param(
            pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"secret")), id="encrypted"
        ),
        pytest.param(b"x" * 100_000, id="huge"),
    ],
)
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(SignatureError, match="Ed25519"):
        load_or_create_key(path)
    assert path.read_bytes() == data


def test_a_pipe_or_folder_or_dangling_link_is_no_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(SignatureError):
            load_or_create_key(tmp_path / name)

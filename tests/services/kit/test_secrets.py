from __future__ import annotations

import base64
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ppdd_core.errors import BadConfigError
from services.kit.secrets import Vault, digest, load_vault, new_token, same
from services.settings import Settings, load_settings

KEY = "kV5nW2rQ8xT3mZ7yB4kV5nW2rQ8xT3mZ7yB4"


def test_tokens_are_long_random_and_known_by_their_prefix() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(token.startswith("ppdd_") and len(token) >= 5 + 43 for token in tokens)
    assert new_token("link_").startswith("link_")


def test_a_tokens_digest_is_its_sha256() -> None:
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_texts_are_compared() -> None:
    assert same("änderung", "änderung")
    assert not same("one", "two")
    assert not same("one", "")


def test_what_is_sealed_opens_for_its_purpose_alone() -> None:
    vault = Vault(bytes(32))
    sealed = vault.seal("a peer's token", "job 1")
    assert "token" not in sealed
    assert sealed != vault.seal("a peer's token", "job 1")  # equal texts cannot be told
    assert vault.open(sealed, "job 1") == "a peer's token"
    with pytest.raises(BadConfigError, match="PPDD_SECRET_KEY"):
        vault.open(sealed, "job 2")
    with pytest.raises(BadConfigError, match="PPDD_SECRET_KEY"):
        Vault(bytes(31) + b"1").open(sealed, "job 1")


@pytest.mark.parametrize("where", [0, 12, -1])
def test_what_was_altered_does_not_open(where: int) -> None:
    vault = Vault(bytes(32))
    data = bytearray(base64.b64decode(vault.seal("text", "purpose")))
    data[where] ^= 1
    with pytest.raises(BadConfigError):
        vault.open(base64.b64encode(data).decode(), "purpose")


@pytest.mark.parametrize("text", ["", "not base64!", "AAAA", "é"])
def test_what_was_never_sealed_does_not_open(text: str) -> None:
    with pytest.raises(BadConfigError):
        Vault(bytes(32)).open(text, "purpose")


def test_a_node_makes_its_key_once_and_for_its_owner_alone(settings: Settings) -> None:
    sealed = load_vault(settings).seal("text", "purpose")
    path = settings.data_dir / "keys" / "secret-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert load_vault(settings).open(sealed, "purpose") == "text"
    assert list(path.parent.iterdir()) == [path]


def test_processes_that_start_together_share_one_key(settings: Settings) -> None:
    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            keys = {vault.key for vault in pool.map(load_vault, [settings] * 8)}
        assert len(keys) == 1
        (settings.data_dir / "keys" / "secret-key").unlink()


def test_a_given_key_is_used_and_nothing_written(tmp_path: Path) -> None:
    one = load_vault(load_settings({"PPDD_SECRET_KEY": KEY}, data_dir=tmp_path / "a"))
    two = load_vault(load_settings({"PPDD_SECRET_KEY": KEY}, data_dir=tmp_path / "b"))
    other = load_vault(load_settings({"PPDD_SECRET_KEY": KEY[::-1]}, data_dir=tmp_path / "a"))
    assert one.key == two.key != other.key
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "short", "change-me-change-me-change-me-change-me"])
def test_a_key_file_that_holds_no_key_is_refused(settings: Settings, text: str) -> None:
    path = settings.data_dir / "keys" / "secret-key"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(BadConfigError, match="secret-key"):
        load_vault(settings)
    assert path.read_text() == text

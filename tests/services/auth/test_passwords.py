"""Which passwords are refused, and how one is kept."""

from __future__ import annotations

import pytest

from services.auth import passwords
from services.auth.passwords import (
    WeakPasswordError,
    check_password,
    hash_password,
    require_strong,
)

NAMES = ("maria", "Maria Rossi-Bianchi")


@pytest.mark.parametrize(
    "password",
    [
        pytest.param("lantern-orb", id="short"),
        pytest.param("x7!q" * 129, id="long"),
        pytest.param("abababababab", id="two letters"),
        pytest.param("password1234", id="common with digits"),
        pytest.param("P@ssw0rd!!2026", id="common in disguise"),
        pytest.param("changeme-changeme", id="placeholder twice"),
        pytest.param("Admin.Hospital.2026", id="common words on end"),
        pytest.param("123456789012", id="digits"),
        pytest.param("838291046621", id="digits without order"),
        pytest.param("qwertyuiop12", id="row of keys"),
        pytest.param("lkjhgfdsapoiu", id="row backwards"),
        pytest.param("abcdefghijklm", id="alphabet"),
        pytest.param("maria-lantern-27", id="user name"),
        pytest.param("lantern ROSSI orbit", id="part of the display name"),
        pytest.param("bianchi\uff0dlantern", id="part of the name, other hyphen"),
    ],
)
def test_refuses(password: str) -> None:
    with pytest.raises(WeakPasswordError, match=r"^password: "):
        require_strong(password, NAMES)


@pytest.mark.parametrize(
    "password",
    [
        "lantern-orbit-velvet-27",
        "vier Pferde im Regen",
        "!9$2#8%4&1@7",
        "a" + "bcde" * 127,
        "Tr0ub4dor&3xyz",
        "пароль-из-слов",
    ],
)
def test_takes(password: str) -> None:
    require_strong(password, NAMES)


def test_hashing_is_dear_and_as_dear_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the quick hashes of these tests
    passwords._nobody.cache_clear()
    costs = {hashed.split("$")[3] for hashed in (hash_password("x" * 12), passwords._nobody())}
    passwords._nobody.cache_clear()
    assert costs == {"m=65536,t=3,p=4"}


def test_a_hash_is_argon2id_and_fits_one_password_in_every_spelling() -> None:
    stored = hash_password("caf\u00e9-lantern-27")
    assert stored.startswith("$argon2id$")
    assert check_password("cafe\u0301-lantern-27", stored)
    assert not check_password("cafe-lantern-27", stored)


def test_nobody_has_no_password() -> None:
    assert not check_password("nobody has this password", None)
    assert not check_password("lantern-orbit-velvet-27", "no hash")

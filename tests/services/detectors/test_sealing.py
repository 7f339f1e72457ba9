"""What lies on disk says nothing, and opens only whole and unchanged."""

from __future__ import annotations

import pytest

from services.detectors.sealing import PIECE, TAG, Sealer, SealError, new_key, unseal

KEY = "0f" * 32


def seal(data: bytes, *, key: str = KEY, step: int = 0) -> bytes:
    sealer = Sealer(key)
    chunks = [data[at : at + step] for at in range(0, len(data), step)] if step else [data]
    return b"".join(sealer.add(chunk) for chunk in chunks) + sealer.finish()


def whole(size: int) -> bytes:
    return bytes(at * 7 % 251 for at in range(1000)) * (size // 1000 + 1)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 5])
def test_what_was_sealed_comes_back(size: int) -> None:
    data = whole(size)[:size]

    sealed = seal(data)

    assert unseal(KEY, [sealed]) == data
    assert len(sealed) == size + TAG * max(1, -(-size // PIECE))
    assert data[:64] not in sealed or size < 8


def test_how_the_bytes_arrive_does_not_matter() -> None:
    data = whole(PIECE + 4000)[: PIECE + 4000]

    sealed = seal(data, step=70_001)

    assert sealed == seal(data)
    parts = [sealed[at : at + 99_991] for at in range(0, len(sealed), 99_991)]
    assert unseal(KEY, parts) == data


def test_keys_are_never_the_same() -> None:
    assert len({new_key() for _ in range(20)}) == 20


N = PIECE + TAG
SEALED = seal(whole(3 * PIECE)[: 3 * PIECE])


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(SEALED[: 2 * N], id="last piece cut off"),
        pytest.param(SEALED[:-1], id="last byte cut off"),
        pytest.param(SEALED + b"x", id="a byte more"),
        pytest.param(SEALED + SEALED[-N:], id="last piece twice"),
        pytest.param(SEALED[N : 2 * N] + SEALED[:N] + SEALED[2 * N :], id="pieces swapped"),
        pytest.param(bytes([SEALED[0] ^ 1]) + SEALED[1:], id="one bit changed"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_anything_changed_is_refused(broken: bytes) -> None:
    with pytest.raises(SealError, match="altered"):
        unseal(KEY, [broken])


def test_another_key_is_refused() -> None:
    with pytest.raises(SealError):
        unseal("1f" * 32, [seal(b"an image")])

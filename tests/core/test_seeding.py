from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ppdd_core.seeding import derive


def test_the_same_arguments_give_the_same_seed_on_every_machine() -> None:
    assert derive(0) == 3456079177858693020
    assert derive(7, "teacher", 3) == derive(7, "teacher", 3)


@given(st.integers(0, 2**31 - 1), st.text(), st.integers())
def test_a_seed_fits_a_generator(seed: int, purpose: str, number: int) -> None:
    assert 0 <= derive(seed, purpose, number) < 2**63


def test_purposes_are_unrelated() -> None:
    seeds = {derive(s, p, n) for s in range(10) for p in ("teacher", "student") for n in range(50)}
    assert len(seeds) == 1000
    ones = sum(bin(derive(1, "bits", n)).count("1") for n in range(1000))
    assert 31 < ones / 1000 < 32  # 63 bits, each set half the time

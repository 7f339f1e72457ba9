"""Randomness as an argument: one independent seed per purpose, derived from the run seed.

Torch-free; turn a seed into a generator where it is used (`torch.Generator().manual_seed(seed)`).
"""

import hashlib


def split_seed(seed: int) -> int:
    """Return the seed by which a run, and whoever tests its detector, splits the patients."""
    return derive(seed, "split") % 2**31


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. `derive(7, "teacher", 3)`.

    The same arguments give the same number on every machine; different purposes are unrelated, so
    a stage that draws more numbers never shifts the randomness of another. (Parts are joined by a
    slash: only the last one may hold one.)
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

"""Whether two sides computed the same gradients."""

from __future__ import annotations

from safetensors.torch import load_file


def difference(first: str, second: str) -> float:
    """Return |a - b| / |a| of the images' gradients or α's, whichever is larger, of two kept files."""
    a, b = load_file(first), load_file(second)
    return max(float((a[name] - b[name]).norm() / a[name].norm()) for name in a)

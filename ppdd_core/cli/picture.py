"""Grey pictures in a terminal: two pixels per character, as half blocks in 24-bit grey."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.style import Style
from rich.text import Text


def half_blocks(grey_HW: NDArray[np.uint8]) -> Text:
    """Return the picture as text: W columns, H / 2 lines (an odd last row is left out)."""
    text = Text()
    for row in range(0, grey_HW.shape[0] - 1, 2):
        for upper, lower in zip(grey_HW[row], grey_HW[row + 1], strict=True):
            style = Style(color=_hex(int(upper)), bgcolor=_hex(int(lower)))
            text.append("▀", style=style)
        text.append("\n")
    return text


def side_by_side(pictures: list[NDArray[np.uint8]], gap: int = 1) -> NDArray[np.uint8]:
    """Return pictures of equal height as one, with a dark gap between them."""
    space = np.zeros((pictures[0].shape[0], gap), dtype=np.uint8)
    parts = [part for picture in pictures for part in (picture, space)]
    return np.concatenate(parts[:-1], axis=1)


def _hex(grey: int) -> str:
    return f"#{grey:02x}{grey:02x}{grey:02x}"

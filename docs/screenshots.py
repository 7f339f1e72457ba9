"""Take the guides' pictures anew: the story that the tests play, on drawn X-rays, with enough of them to look at.

Run from the root of the repository: `make docs-screenshots`; needs chromium. The pictures are palettes of few colours,
so that the repository stays small.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tests.browser.seeing import chromium_path, opened, take
from tests.browser.story import Scale, Story

FOLDER = Path(__file__).parent / "guides" / "pictures"
SCALE = Scale(images_a=3000, images_b=1000, image_size=64, images_per_class=5)
# What the guides show, and how much of each page: a picture that is higher than a screen is read by nobody.
SHOWN = {
    "overview-new": 1150, "dataset": 1700, "distillation-new": 1400, "job-running": 1300, "job": 1500,
    "package-draft": 1500, "token-for-a-hospital": 900, "pull-new": 900,
    "detector": 1900, "audit": 1000, "overview": 900,
}  # fmt: skip
COLOURS = 128


def main() -> None:
    """Play the story and keep what the guides show."""
    path = chromium_path()
    if path is None:
        sys.exit("no chromium: apt-get install chromium, or name it in PPDD_CHROMIUM")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with tempfile.TemporaryDirectory() as folder, opened(path) as browser:
        os.environ["PPDD_HOME"] = str(Path(folder) / "home")
        faults = Story(browser, Path(folder), SCALE, keep).play()
    missing = [name for name in SHOWN if not (FOLDER / f"{name}.png").exists()]
    if faults or missing:
        sys.exit("\n".join([*faults, *(f"no picture of {name}" for name in missing)]))


def keep(name: str, page: Page) -> None:
    """Keep the upper part of a page as a small PNG, where a guide shows it."""
    path = FOLDER / f"{name}.png"
    if name not in SHOWN or path.exists():  # the first hospital's, where both see such a page
        return
    take(page, path)
    with Image.open(path) as whole:
        upper = whole.convert("RGB").crop((0, 0, whole.width, min(whole.height, SHOWN[name])))
    upper.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()

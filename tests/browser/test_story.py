"""The whole story of each role, in a browser, on real nodes with real workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.seeing import take
from tests.browser.story import Scale, Story

SMALL = Scale(
    images_a=160, images_b=80, image_size=32, epochs=3,
    recipe={
        "image_size": 16, "net.width": 8, "net.depth": 2,
        "teacher.teachers": 2, "teacher.epochs": 5, "teacher.epoch_images": 160,
        "distill.iterations": 40, "distill.student_steps": 3, "distill.max_start_epoch": 3,
        "detector.epochs": 3, "detector.seeds": 1, "privacy.members": 20,
        "evaluation.full_epochs": 1, "evaluation.full_epoch_images": 64,
    },
)  # fmt: skip
# Kept for looking at, also after a failure.
SEEN = Path(os.environ.get("PPDD_SCREENSHOTS") or "build/screenshots")


@pytest.mark.e2e
def test_every_role_does_its_part_in_the_browser(
    chromium: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))
    SEEN.mkdir(parents=True, exist_ok=True)

    def look(name: str, page: Page) -> None:
        take(page, SEEN / f"{name}.png")

    assert Story(chromium, tmp_path, SMALL, look).play() == []

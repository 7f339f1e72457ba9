"""Debian's chromium, and furnished nodes in front of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser.seeing import Site, chromium_path, furnished_site, opened


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser without a window. Where there is none the test is skipped, but fails on CI.

    It is gone with the module's last test: while it runs, nothing else in its thread can use asyncio.
    """
    path = chromium_path()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium: apt-get install chromium, or name it in PPDD_CHROMIUM")
        pytest.skip("no chromium on this machine (apt-get install chromium, or PPDD_CHROMIUM)")
    with opened(path) as browser:
        yield browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A node with something on every page."""
    with furnished_site(tmp_path_factory.mktemp("site")) as made:
        yield made


@pytest.fixture(scope="module")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The same, whose every text is hostile."""
    with furnished_site(tmp_path_factory.mktemp("hostile"), hostile=True) as made:
        yield made

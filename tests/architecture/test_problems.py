"""Every refusal says what it is in one way, and has a page that says what to do about it."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from pathlib import Path

from services.kit.errors import CORE, ServiceError
from services.system.pages import PLAIN, all_pages, error_classes

ROOT = Path(__file__).resolve().parents[2]
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def load_all() -> None:
    """Import every module of the node, so that all kinds of errors are known."""
    for path in sorted((ROOT / "services").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        importlib.import_module(".".join(part for part in parts if part != "__init__"))


def kinds() -> list[type[ServiceError]]:
    load_all()
    return [kind for kind in error_classes() if kind.__module__.startswith("services.")]


def test_every_kind_of_refusal_has_a_slug_of_its_own() -> None:
    said = [kind.slug for kind in kinds() if "slug" in vars(kind)]
    said += [slug for slug, *_ in PLAIN] + [slug for _, _, slug, _ in CORE]
    assert [slug for slug, count in Counter(said).items() if count > 1] == []
    assert [slug for slug in said if not SLUG.fullmatch(slug)] == []


def test_every_kind_of_refusal_says_what_it_means() -> None:
    silent = [
        kind.__name__
        for kind in kinds()
        if "slug" in vars(kind) and not ((kind.__doc__ or "").strip() and "title" in vars(kind))
    ]
    assert silent == []


def test_every_kind_of_refusal_has_a_page_with_advice() -> None:
    load_all()
    pages = all_pages()
    assert {kind.slug for kind in kinds()} <= set(pages)
    assert [page.slug for page in pages.values() if not (page.meaning and page.advice)] == []


def test_slugs_that_answers_use_have_pages() -> None:
    load_all()
    source = (ROOT / "services/kit/problems.py").read_text(encoding="utf-8")
    used = set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"', source)) - {"retry-after", "x-correlation-id"}
    assert {slug for slug in used if not slug.startswith("content-")} <= set(all_pages())

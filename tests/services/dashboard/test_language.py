"""Every text of the pages is in every language, with the same things to fill in, and no table has one too many."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import string
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import ppdd_core
import services
import worker
from ppdd_core.package.manifest import DUO
from ppdd_core.privacy.wording import WORDS
from services.auth.permissions import Role
from services.dashboard import forms, words
from services.dashboard.figures import METHODS
from services.dashboard.language import FOLDER, LANGUAGES, translator
from services.dashboard.notices import NOTICES
from services.dashboard.pages.packages import INITIALISATIONS
from services.dashboard.rendering import PLACES, THEMES
from services.kit.errors import CORE, ServiceError
from tests.services.dashboard.conftest import NewBrowser

TEMPLATES = Path(services.__file__).parent / "dashboard" / "templates"
OTHERS = [language for language in LANGUAGES if language != "en"]
_TEXT = re.compile(
    r"""\bt\(\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*([+~])?"""
)  # `t("…")`, `t("…" + code)`
_PATTERNS = "patterns.html"  # its words are examples, for who changes the pages


@cache
def said() -> tuple[dict[str, str], set[str]]:
    """Return every text that a template says, with where; and the beginnings of those that end in a code."""
    whole, beginnings = {}, set()
    for path in sorted(TEMPLATES.glob("*.html")):
        for quoted, plus in _TEXT.findall(path.read_text(encoding="utf-8")):
            text = ast.literal_eval(quoted)
            if plus:
                beginnings.add(text)
            elif path.name != _PATTERNS:
                whole[text] = path.name
    return whole, beginnings


def spoken() -> dict[str, str]:
    """Return all texts that must have a translation: those of templates and the tables that templates read."""
    found = said()[0] | dict.fromkeys(NOTICES.values(), "notices.py")
    found |= {place[1]: "rendering.py" for place in PLACES}
    found |= {f"colours: {theme}": "base.html" for theme in THEMES}
    found |= dict.fromkeys([*words.SCOPES.values(), *words.ROLES.values()], "words.py")
    found |= dict.fromkeys([role.value for role in Role], "permissions.py")
    found |= dict.fromkeys(forms.SAID.values(), "forms.py")
    found |= dict.fromkeys(titles(), "the title of a problem")
    found |= dict.fromkeys(of_packages(), "packages and their reports")
    return found


def of_packages() -> set[str]:
    """Return the words for codes of packages and evaluations, and the sentences of a privacy report."""
    tables = (DUO, METHODS, INITIALISATIONS, words.ORIGINS, words.SPLITS, words.VERDICTS)
    found = {text for table in tables for text in table.values()}
    for one in WORDS.values():
        found |= {one.title, one.method, one.does_not_show}
    return found


def titles() -> set[str]:
    """Return the titles of all problems that a service or a job may raise."""
    for module in pkgutil.walk_packages(worker.__path__, "worker."):
        importlib.import_module(module.name)
    found, waiting = {title for *_, title in CORE}, [ServiceError]
    while waiting:
        kind = waiting.pop()
        found.add(kind.title)
        waiting += kind.__subclasses__()
    return found


@cache
def constants() -> frozenset[str]:
    """Return every text in our own programs: templates translate words that come from there."""
    found = set()
    for package in (services, worker, ppdd_core):
        for path in Path(package.__file__ or "").parent.rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
    return frozenset(found)


def tables(language: str) -> dict[str, dict[str, str]]:
    """Return the tables of a language by file; a key that stands twice in one file is a fault."""

    def unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        assert not twice, twice
        return dict(pairs)

    paths = sorted((FOLDER / language).glob("*.json"))
    return {
        path.name: json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
        for path in paths
    }


def placeholders(text: str) -> Counter[str]:
    return Counter(name for _, name, _, _ in string.Formatter().parse(text) if name is not None)


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_has_a_translation(language: str) -> None:
    known = {key for table in tables(language).values() for key in table}
    missing = {text: where for text, where in spoken().items() if text not in known}
    assert missing == {}


@pytest.mark.parametrize("language", OTHERS)
def test_translations_fill_in_the_same_things(language: str) -> None:
    for name, table in tables(language).items():
        for text, words_of in table.items():
            assert words_of.strip() == words_of != "", f"{name}: {text}"
            assert placeholders(text) == placeholders(words_of), f"{name}: {text}"


@pytest.mark.parametrize("language", OTHERS)
def test_no_table_has_a_text_that_nothing_says_or_that_another_says_otherwise(
    language: str,
) -> None:
    seen: dict[str, str] = {}
    beginnings = tuple(said()[1])
    for name, table in tables(language).items():
        unused = set(table) - set(spoken()) - constants()
        assert {text for text in unused if not text.startswith(beginnings)} == set(), name
        for text, words_of in table.items():
            assert seen.setdefault(text, words_of) == words_of, f"{name}: {text}"


@pytest.mark.parametrize("language", OTHERS)
def test_texts_that_end_in_a_code_have_translations_for_its_codes(language: str) -> None:
    known = {key for table in tables(language).values() for key in table}
    for beginning in said()[1]:
        assert any(key.startswith(beginning) for key in known), beginning


def test_a_text_that_is_one_of_two_is_translated_each() -> None:
    for path in TEMPLATES.glob("*.html"):
        assert not re.search(r'\bt\("[^"]*"\s+if ', path.read_text(encoding="utf-8")), path.name


def test_a_text_without_translation_stays_and_is_filled_in() -> None:
    for language in LANGUAGES:
        assert (
            translator(language)("{count} of {all} unheard-of", count=1, all=2)
            == "1 of 2 unheard-of"
        )


def test_the_reader_chooses_the_language_and_else_the_browser(
    browser: NewBrowser, client: TestClient
) -> None:
    one = browser("admin")
    assert '<html lang="en"' in one.get("/").text
    wish = {"Accept-Language": "fr-FR, ja-JP;q=0.9, en;q=0.5"}
    page = one.get("/", headers=wish)
    assert '<html lang="ja"' in page.text
    assert "概要" in page.text
    chosen = one.post("/appearance", {"language": "en", "next": "/system"})
    assert chosen.headers["Location"] == "/system"
    assert '<html lang="en"' in one.get("/", headers=wish).text
    assert one.post("/appearance", {"language": "xx"}).status_code == 400

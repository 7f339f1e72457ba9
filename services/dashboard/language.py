"""The languages of the pages. The English words are in the templates; other languages are tables of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

from fastapi import Request

FOLDER = Path(__file__).parent / "languages"
LANGUAGES = {"en": "English", "ja": "日本語"}
COOKIE = "ppdd_language"

Translate = Callable[..., str]


def language_of(request: Request) -> str:
    """Return the language that the reader chose, else the first that their browser asks for and we have."""
    chosen = request.cookies.get(COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    for wish in request.headers.get("accept-language", "").split(","):
        code = wish.partition(";")[0].strip().lower().partition("-")[0]
        if code in LANGUAGES:
            return code
    return "en"


def translator(language: str) -> Translate:
    """Return what turns an English text into the language; `{name}` is filled in. What has no translation stays."""
    table = _table(language)

    def translate(text: str, /, **values: object) -> str:
        found = table.get(text, text)
        return found.format_map(values) if values else found

    return translate


@functools.cache
def _table(language: str) -> dict[str, str]:
    """Return all tables of a language as one: there is a file for each group of pages."""
    table: dict[str, str] = {}
    for path in sorted((FOLDER / language).glob("*.json")):
        table.update(json.loads(path.read_text(encoding="utf-8")))
    return table

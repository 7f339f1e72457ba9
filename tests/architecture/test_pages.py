"""The documentation is true: generated pages are current, commands and links in it exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from services.settings import setting_names

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CONTINUATION = re.compile(r"\\\n\s*")


def load_generator() -> ModuleType:
    """Return docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def command_lines(page: str) -> list[list[str]]:
    """Return the `ppdd …` lines of a page's code blocks, in words."""
    lines = []
    for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for line in CONTINUATION.sub(" ", block).splitlines():
            plain = line.removeprefix("$ ")
            if Path(next(iter(plain.split()), "")).name == "ppdd":
                lines.append(shlex.split(plain, comments=True)[1:])
    return lines


def unknown(words: list[str]) -> str:
    """Return what of a command line the program does not know; empty is good."""
    for path, command in generate.commands():
        if tuple(words[: len(path)]) == path:
            known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
            wrong = [
                w for w in words[len(path) :] if w.startswith("--") and w.split("=")[0] not in known
            ]
            return f"{' '.join(path)} has no {wrong[0]}" if wrong else ""
    return "" if words in (["--help"], ["--version"]) else f"no such command: {' '.join(words)}"


@pytest.mark.parametrize("place", generate.PAGES)
def test_a_generated_page_is_current(place: str) -> None:
    page = generate.PAGES[place]()
    assert (ROOT / place).read_text(encoding="utf-8") == page, "run `make fix`"


def test_every_recipe_field_is_explained() -> None:
    fields = [row for group in generate.GROUPS for row in generate.recipe_fields(group)]
    assert [name for name, _, allowed, meaning in fields if not meaning or not allowed] == []


def test_every_choice_of_a_recipe_is_explained() -> None:
    for field, choices in generate.CHOICES.items():
        listed = next(
            a for n, _, a, _ in generate.recipe_fields("distill") if n == f"distill.{field}"
        )
        assert listed == ", ".join(f"`{choice}`" for choice in choices)
    assert all(generate.similarity_meanings().values())


def test_every_setting_is_explained() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert [name for name in setting_names() if f"| `{name}` |" not in page] == []
    assert [name for name, _, _, meaning in generate.setting_rows() if not meaning] == []


def test_every_option_and_command_has_a_meaning() -> None:
    silent = []
    for path, command in generate.commands():
        if not (command.help or "").strip():
            silent.append(" ".join(path))
        silent += [
            f"{' '.join(path)} {param.name}"
            for param in command.params
            if not param.hidden and not (getattr(param, "help", None) or "").strip()
        ]
    assert silent == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_on_a_page_exist(page: Path) -> None:
    wrong = [
        said for line in command_lines(page.read_text(encoding="utf-8")) if (said := unknown(line))
    ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_on_a_page_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_make_targets_on_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets: set[Any] = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    named = {
        t for p in PAGES for t in re.findall(r"`make ([a-z-]+)", p.read_text(encoding="utf-8"))
    }
    assert named - targets == set()


def test_every_make_target_has_one_line_of_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    helped = set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE))
    assert set(phony[1].split()) == helped

"""Commands that other installed packages add to `ppdd`, found through entry points and loaded when they are called.

A package names them in the entry-point group `ppdd.commands`. `noun = "module:app"` adds the typer app as a group, or
as one command where it has only one; `noun.verb = "module:app"` adds that verb of the app to a group that exists here.
The line that `ppdd --help` shows is the first sentence of the module's docstring, read without importing it, so that
help stays quick whatever is installed.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer.main
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter

GROUP = "ppdd.commands"


@cache
def added() -> Mapping[str, EntryPoint]:
    """Return what is added, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


class ExtensibleGroup(TyperGroup):
    """A group of commands that others may add to. Its own commands come first, and cannot be replaced."""

    announcing = False  # help is being written: names and lines are enough

    def list_commands(self, ctx: Context) -> list[str]:
        """Return the names of all commands."""
        own = super().list_commands(ctx)
        prefix = self._prefix()
        names = [name.removeprefix(prefix) for name in added() if name.startswith(prefix)]
        return [*own, *sorted(name for name in names if "." not in name and name not in own)]

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        """Return a command, importing its module only now."""
        own = super().get_command(ctx, cmd_name)
        entry = added().get(self._prefix() + cmd_name)
        if own is not None or entry is None or "." in cmd_name:
            return own
        return _announced(entry, cmd_name) if self.announcing else load(entry, cmd_name)

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the help without importing what was added."""
        self.announcing = not self._prefix()
        try:
            super().format_help(ctx, formatter)
        finally:
            self.announcing = False

    def _prefix(self) -> str:
        return "" if self.name == "ppdd" else f"{self.name}."


def load(entry: EntryPoint, name: str) -> Command:
    """Import what an entry point names and return it as a command called `name`."""
    app: typer.Typer = entry.load()
    program = typer.Typer(add_completion=False)
    program.add_typer(app, name=name)
    group = typer.main.get_group(program).commands[name]
    assert isinstance(group, TyperGroup)
    if "." in entry.name:
        return group.commands[name]
    if app.registered_callback or app.registered_groups or len(app.registered_commands) > 1:
        return group
    (command,) = group.commands.values()
    command.name = name
    return command


def _announced(entry: EntryPoint, name: str) -> Command:
    return TyperCommand(name, help=_first_sentence(entry.module))


def _first_sentence(module: str) -> str:
    """Return what a module's docstring says it is, after the command's name."""
    found = find_spec(module)
    if found is None or found.origin is None:
        return ""
    doc = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
    first = " ".join(doc.split("\n\n")[0].split()).split(". ")[0].rstrip(".")
    said = first.partition("`: ")[2] or first
    return said[:1].upper() + said[1:] + "."

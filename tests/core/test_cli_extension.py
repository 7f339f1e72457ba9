from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ppdd_core.cli import extension
from ppdd_core.cli.main import app

MODULE = '''"""`ppdd planet`: look at the sky. And more."""
import typer
app = typer.Typer(help="Planets.")
alone = typer.Typer()

@app.command()
def show() -> None:
    """Show one."""
    typer.echo("a planet")

@app.command()
def hide() -> None:
    """Hide one."""

@alone.command()
def wave(name: str) -> None:
    """Wave."""
    typer.echo(f"hello {name}")
'''


@pytest.fixture
def planets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "added_planets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    entries = {
        name: EntryPoint(name, f"added_planets:{value}", extension.GROUP)
        for name, value in {
            "planet": "app",
            "wave": "alone",
            "dataset.show": "app",
            "package.show": "app",
        }.items()
    }
    monkeypatch.setattr(extension, "added", lambda: entries)
    yield
    sys.modules.pop("added_planets", None)


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code in (0, 2), done.output
    return done.output


@pytest.mark.usefixtures("planets")
def test_help_names_what_was_added_without_importing_it() -> None:
    text = run("--help")
    assert "planet" in text
    assert "Look at the sky." in text
    assert "added_planets" not in sys.modules


@pytest.mark.usefixtures("planets")
def test_an_added_group_and_an_added_command_run() -> None:
    assert "a planet" in run("planet", "show")
    assert "hello mars" in run("wave", "mars")
    assert "--install-completion" not in run("planet", "--help")


@pytest.mark.usefixtures("planets")
def test_a_verb_is_added_to_a_group_that_exists() -> None:
    assert "a planet" in run("dataset", "show")
    assert "Show one." in run("dataset", "--help")
    assert "hide" not in run("dataset", "--help")


@pytest.mark.usefixtures("planets")
def test_no_command_of_the_program_can_be_replaced() -> None:
    assert "a planet" not in run("package", "show", "--help")


@pytest.mark.usefixtures("planets")
def test_an_unknown_command_is_still_unknown() -> None:
    assert "No such command 'moon'" in run("moon")


def test_help_imports_no_service() -> None:
    code = (
        "import sys; from ppdd_core.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'sqlalchemy', 'fastapi', 'celery', 'pydantic', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""The program `ppdd` run within a test, as if typed."""

from __future__ import annotations

import pytest
import typer

from ppdd_core.cli.main import app, main


def ppdd(*arguments: object, program: typer.Typer = app) -> int:
    """Run `program` with `arguments` and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments], program=program)
    return int(left.value.code or 0)

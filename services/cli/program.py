"""The typer app that every command of the node is made with: refusals of services become those of the program."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from typer.core import TyperCommand

from ppdd_core.errors import PpddError

if TYPE_CHECKING:
    from typer._click import Context

F = TypeVar("F", bound=Callable[..., Any])


class NodeCommand(TyperCommand):
    """A command that says in one sentence what a service refuses, or that the database is away."""

    def invoke(self, ctx: Context) -> Any:
        """Run the command; a refusal leaves as PpddError."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            said = _words(error)
            if said is None:
                raise
            raise PpddError(said) from error


class Commands(typer.Typer):
    """A typer app whose commands are of that kind."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Add a command, as typer does."""
        return super().command(name, **{"cls": NodeCommand, **options})


def _words(error: Exception) -> str | None:
    """Return what a person is told, None for a bug."""
    from sqlalchemy.exc import OperationalError

    from services.kit.errors import ServiceError

    if isinstance(error, ServiceError):
        return error.detail
    if isinstance(error, OperationalError):
        reason = str(error.orig).strip().splitlines()
        return f"the database does not answer: {reason[0] if reason else type(error.orig).__name__}"
    return None

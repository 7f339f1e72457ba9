"""Being logged in as a person, from a program: what only people may do, such as making tokens, needs a session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import typer

from ppdd_core.errors import BadConfigError
from services.auth.dependencies import CSRF_HEADER
from services.auth.permissions import Role, role_scopes
from services.cli.remote import Login, Node


def split_link(link: str) -> tuple[str, str]:
    """Return the node's address and the one-time token of a link that a node printed; BadConfigError for any other."""
    parts = urlsplit(link)
    if parts.scheme not in ("http", "https") or not parts.netloc or not parts.fragment:
        raise BadConfigError(
            "give the whole link that the node printed, in quotes, with what follows the #"
        )
    return f"{parts.scheme}://{parts.netloc}", parts.fragment


def read_password(file: Path | None, *, confirm: bool = False) -> str:
    """Return the password in `file`, or as a person types it."""
    if file is not None:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    text: str = typer.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True)
    return text


@contextmanager
def logged_in(node: Node, path: str, credentials: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """Hold a session on `node`, made by posting credentials to `/sessions` or `/setup`; it ends with the block.

    Yields the session. Its cookie lies in the client meanwhile, and every request carries what belongs to it.
    """
    session: dict[str, Any] = node.post(path, credentials)
    node.client.headers[CSRF_HEADER] = session["csrf"]
    try:
        yield session
    finally:
        node.delete(f"/sessions/{session['id']}")
        del node.client.headers[CSRF_HEADER]
        node.client.cookies = httpx2.Cookies()


def make_token(node: Node, session: Mapping[str, Any], days: int) -> Login:
    """Return a login by a token with every scope of the person's role; one's own account is not among them."""
    scopes = sorted(role_scopes(Role(session["user"]["role"])))
    made = node.post("/tokens", {"name": "ppdd login", "scopes": scopes, "days": days})
    return Login(node.login.url, made["token"], node.login.ca_file)

"""Logging in from a program: a session for the moment it takes to make a token, then no session any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx2

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


def set_up(
    node: Node, *, token: str, username: str, display_name: str, password: str, days: int
) -> Login:
    """Make the node's first administrator and return a login of theirs."""
    body = {
        "token": token,
        "username": username,
        "display_name": display_name,
        "password": password,
    }
    return _token(node, node.post("/setup", body), days)


def log_in(node: Node, *, username: str, password: str, code: str | None, days: int) -> Login:
    """Return a login made with a password (and a one-time code, where the account asks for one)."""
    body = {"username": username, "password": password, **({"code": code} if code else {})}
    return _token(node, node.post("/sessions", body), days)


def _token(node: Node, session: Mapping[str, Any], days: int) -> Login:
    """Make a token with every scope of the role, and end the session: its cookie lies in the client until then."""
    csrf = {CSRF_HEADER: session["csrf"]}
    scopes = sorted(role_scopes(Role(session["user"]["role"])))
    made = node.post(
        "/tokens", {"name": "ppdd login", "scopes": scopes, "days": days}, headers=csrf
    )
    node.delete(f"/sessions/{session['id']}", headers=csrf)
    node.client.cookies = httpx2.Cookies()
    return Login(node.login.url, made["token"], node.login.ca_file)

"""`ppdd peer`: let another hospital pull what this one released."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ppdd_core.cli.console import JsonOption, emit
from ppdd_core.errors import BadConfigError
from services.cli.program import Commands

app = Commands(help="Other hospitals that may pull what this one released.", no_args_is_help=True)


@app.callback()
def peer() -> None:
    """Let other hospitals pull what this one released."""


@app.command()
def add(
    name: Annotated[
        str, typer.Argument(metavar="HOSPITAL", help="Name of its account here, e.g. hospital-b.")
    ],
    out: Annotated[
        Path, typer.Option(help="File to write its token to; give that to them on a safe way.")
    ],
    username: Annotated[str, typer.Option(help="Your own account, an administrator's.")],
    display_name: Annotated[
        str | None, typer.Option(help="The hospital's name for people.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File with your password; asked for where absent.")
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="One-time code, where your account asks for one.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=366, help="How long the token works.")] = 90,
    node_url: Annotated[
        str | None,
        typer.Option("--node", metavar="URL", help="Another node than that of `ppdd login`."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an account for another hospital, where it has none, and a token that reads released packages.

    Making tokens needs a person, not a token: your password is asked for. Prints what the other hospital types.
    """
    from services.cli.remote import Login, find_login, open_node
    from services.cli.session import logged_in, read_password

    if out.exists():
        raise BadConfigError(f"{out} exists already; choose another name")
    known = find_login(node_url)
    person = {
        "username": username,
        "password": read_password(password_file),
        **({"code": code} if code else {}),
    }
    with (
        open_node(Login(known.url, "", known.ca_file)) as node,
        logged_in(node, "/sessions", person),
    ):
        account = next(
            (user for user in node.rows("/users") if user["username"] == name.lower()), None
        )
        if account is None:
            node.post(
                "/users", {"username": name, "display_name": display_name or name, "role": "peer"}
            )
        elif account["role"] != "peer":
            raise BadConfigError(
                f"{name} is a person's account here; choose another name for the hospital"
            )
        made = node.post(
            "/tokens", {"name": "pull", "scopes": ["packages:read"], "days": days, "username": name}
        )
        site = node.get("/system/info")["site"]
    with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(made["token"] + "\n")
    value = {
        "url": known.url,
        "site": site["id"],
        "key": site["key"],
        "token_file": str(out),
        "expires_at": made["expires_at"],
    }
    told = (
        f"wrote the token to {out}; it works until {made['expires_at'][:10]}. The other hospital types:\n"
        f"  ppdd pull {known.url} {site['id']}/NAME@VERSION --token-file {out.name} --key {site['key']}\n"
        "Tell them the key by another way, for example by telephone."
    )
    emit(value, as_json=as_json, render=Text(told))

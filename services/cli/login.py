"""`ppdd login`: let this machine's user speak to a node; makes the node's first administrator, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppdd_core.cli.console import remark
from services.cli.program import Commands

app = Commands()


@app.command()
def login(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="Address of the node; or the set-up link that a new node printed."
        ),
    ],
    username: Annotated[str | None, typer.Option(help="Account; asked for where absent.")] = None,
    display_name: Annotated[
        str | None, typer.Option(help="With a set-up link: the administrator's name for people.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File with the password; asked for where absent.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token that was made elsewhere.")
    ] = None,
    code: Annotated[
        str | None, typer.Option(help="One-time code, where the account asks for one.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=366, help="How long the login lasts.")] = 30,
    ca_file: Annotated[
        Path | None, typer.Option(help="Certificate (authority) to trust, PEM.")
    ] = None,
) -> None:
    """Log in to a node, or set a new one up; the commands `job`, `dataset`, `package` and `pull` then speak to it.

    The password is not kept: it makes a token, which lies in the login file that is named at the end.
    """
    from services.cli.remote import Login, open_node
    from services.cli.session import logged_in, make_token, read_password, split_link

    secret = None
    if "#" in url:
        url, secret = split_link(url)
    given = "" if token_file is None else token_file.read_text(encoding="utf-8").strip()
    nobody = Login(url.rstrip("/"), given, None if ca_file is None else str(ca_file.absolute()))
    with open_node(nobody) as node:
        if given:
            node.get("/jobs", limit=1)
            login = nobody
        else:
            username = username or typer.prompt("Username", err=True)
            person = {
                "username": username,
                "password": read_password(password_file, confirm=bool(secret)),
            }
            if secret is not None:
                path, person = (
                    "/setup",
                    {**person, "token": secret, "display_name": display_name or username},
                )
            else:
                path, person = "/sessions", {**person, **({"code": code} if code else {})}
            with logged_in(node, path, person) as session:
                login = make_token(node, session, days)
    remark(f"logged in to {login.url} for {days} days; the login lies in {login.save()}")

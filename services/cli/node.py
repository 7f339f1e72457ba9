"""`ppdd node`: run a hospital's node on this machine, or prepare one for docker compose.

What takes time to import is imported by the command that needs it.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppdd_core.cli.console import FAILED, JsonOption, complain, emit, remark
from ppdd_core.errors import BadConfigError
from services.cli.program import Commands

if TYPE_CHECKING:
    from services.kit.resources import Resources
    from services.settings import Settings

app = Commands(help="Run a node, or prepare one for docker compose.", no_args_is_help=True)

DataDirOption = Annotated[
    Path | None,
    typer.Option(help="The node's folder; default: PPDD_DATA_DIR, or ~/.local/share/ppdd/node."),
]


@app.command()
def up(
    data_dir: DataDirOption = None,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; any but this machine's own needs --cert."),
    ] = "127.0.0.1",
    site: Annotated[
        str | None, typer.Option(help="This hospital's id, as it stands in package names.")
    ] = None,
    site_name: Annotated[str | None, typer.Option(help="This hospital's name for people.")] = None,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder whose datasets may be registered; may be given again."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Worker processes; one per GPU, or one for the CPU.")
    ] = 1,
    cert: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="Private key of --cert, PEM.")] = None,
) -> None:
    """Run a whole node here: database, store, API and workers, all in one folder. Ctrl-C stops it cleanly."""
    from services.cli.running import Listening, alone_in, listen, run_node
    from services.kit import logging
    from services.kit.migrate import upgrade
    from services.kit.resources import open_resources
    from services.settings import load_settings

    _check_tls(host, cert, key_file)
    chosen: dict[str, Any] = {"data_dir": data_dir, "site_id": site, "site_name": site_name}
    if data_root:
        chosen["data_roots"] = [root.absolute() for root in data_root]
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if data_dir is not None:
        chosen["data_dir"] = data_dir.absolute()
    first = load_settings(None, **chosen)
    with alone_in(first.data_dir), listen(host, port) as sock:
        at = Listening(sock, cert, key_file)
        if "PPDD_PUBLIC_URL" not in os.environ:
            chosen["public_url"] = at.url
        settings = load_settings(None, **chosen)
        logging.configure(settings.log)
        upgrade(settings)
        with open_resources(settings) as resources:
            run_node(
                resources,
                at,
                workers=workers,
                environ=environment(os.environ, chosen),
                on_ready=lambda: _welcome(resources, at.url),
            )
    remark("the node has stopped")


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on: that of the network behind the proxy.")
    ] = "0.0.0.0",  # noqa: S104 - inside a container, behind the proxy
) -> None:
    """Run the API alone, behind a proxy that speaks TLS; for containers. Migrations must have run."""
    import structlog

    from services.cli.running import Listening, listen, run_node
    from services.kit import logging
    from services.kit.migrate import require_head
    from services.kit.resources import open_resources
    from services.settings import load_settings

    settings = load_settings()
    logging.configure(settings.log)
    log = structlog.get_logger(__name__)
    with listen(host, port) as sock, open_resources(settings) as resources:
        require_head(resources.engine)
        at = Listening(sock, behind_proxy=True)
        run_node(resources, at, on_ready=lambda: log.info("api.ready", address=at.url))


@app.command()
def migrate(data_dir: DataDirOption = None) -> None:
    """Bring the database to the shape that this version needs. Make a backup first: `ppdd backup`."""
    from services.kit import logging
    from services.kit.migrate import upgrade

    settings = _settings(data_dir)
    logging.configure(settings.log)
    remark(f"the database is at revision {upgrade(settings)}")


@app.command("setup-link")
def setup_link(data_dir: DataDirOption = None) -> None:
    """Print a new link for making the first administrator; an older one stops working."""
    from services.kit.resources import open_resources

    with open_resources(_settings(data_dir)) as resources:
        link = _open_setup_link(resources)
    if link is None:
        complain("this node has an administrator already, who makes links for others: ppdd login")
        raise typer.Exit(FAILED)
    typer.echo(link)


@app.command()
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of docker-compose.yml.", file_okay=False)
    ],
    site: Annotated[
        str, typer.Option(help="This hospital's id, as it stands in package names.")
    ] = "hospital",
    site_name: Annotated[str, typer.Option(help="This hospital's name for people.")] = "",
    public_host: Annotated[
        str, typer.Option(help="Name or address under which people reach the node.")
    ] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the proxy.")] = 443,
    images: Annotated[Path, typer.Option(help="Folder of chest X-rays; mounted read only.")] = Path(
        "images"
    ),
    profile: Annotated[
        str, typer.Option(help="Which worker: `cpu` or `gpu`.", metavar="cpu|gpu")
    ] = "cpu",
    cert: Annotated[
        Path | None, typer.Option(help="TLS certificate, PEM; default: one signed by itself.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="Private key of --cert, PEM.")] = None,
) -> None:
    """Write .env and secrets/ for docker compose: every secret made, none printed, nothing overwritten."""
    from services.cli.secret_files import Deployment, write_deployment

    if profile not in ("cpu", "gpu"):
        raise BadConfigError(f"--profile must be cpu or gpu, got {profile!r}")
    write_deployment(
        folder,
        Deployment(site, site_name or site, public_host, port, images, profile),
        cert,
        key_file,
    )
    remark(f"wrote {folder / '.env'} and {folder / 'secrets'}; keep a copy of both in a safe place")
    remark("next: docker compose up -d; then: docker compose exec api ppdd node setup-link")


@app.command()
def collect(
    data_dir: DataDirOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove objects from the store that nothing has referred to for a day. The node may run meanwhile."""
    from services.kit.resources import open_resources
    from services.system.collect import collect as run

    with open_resources(_settings(data_dir)) as resources:
        found = run(resources, dry_run=dry_run)
    value = {
        "seen": found.seen,
        "objects": found.objects,
        "bytes": found.bytes,
        "removed": not dry_run,
    }
    verb = "could be removed" if dry_run else "removed"
    said = f"{found.objects:,} of {found.seen:,} objects {verb}, {found.bytes / 1e6:,.1f} MB"
    emit(value, as_json=as_json, render=said)


@app.command()
def healthcheck(
    worker: Annotated[
        bool, typer.Option("--worker", help="Ask for this machine's worker instead of the API.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the API on this machine.")] = 8000,
) -> None:
    """Exit with 0 if the API (or the worker) of this container works, else with 1. For health checks."""
    fault = _worker_fault() if worker else _api_fault(port)
    if fault:
        complain(fault)
        raise typer.Exit(FAILED)


@app.command()
def openapi() -> None:
    """Print the API's description, as OpenAPI 3.1."""
    import json
    import tempfile

    from services.app import create_app
    from services.kit.resources import open_resources
    from services.settings import load_settings

    with (
        tempfile.TemporaryDirectory() as folder,
        open_resources(load_settings({}, data_dir=Path(folder))) as resources,
    ):
        typer.echo(json.dumps(create_app(resources).openapi(), indent=2, sort_keys=True))


def environment(environ: Mapping[str, str], chosen: Mapping[str, Any]) -> dict[str, str]:
    """Return `environ` with the settings chosen by options in it, for the processes that are started."""
    told = dict(environ)
    for name, value in chosen.items():
        variable = f"PPDD_{name}".upper()
        told.pop(f"{variable}_FILE", None)
        told[variable] = (
            os.pathsep.join(str(one) for one in value) if isinstance(value, list) else str(value)
        )
    return told


def _settings(data_dir: Path | None) -> Settings:
    from services.settings import load_settings

    return load_settings(None, **({} if data_dir is None else {"data_dir": data_dir.absolute()}))


def _check_tls(host: str, cert: Path | None, key_file: Path | None) -> None:
    """Refuse to speak without TLS to anything but this machine; BadConfigError says so."""
    if (cert is None) != (key_file is None):
        raise BadConfigError("--cert and --key-file belong together")
    for path in (cert, key_file):
        if path is not None and not os.access(path, os.R_OK):
            raise BadConfigError(f"{path} cannot be read")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and cert is None:
        raise BadConfigError(
            f"--host {host} can be reached by others, so it needs TLS: give --cert and --key-file, or leave --host out"
        )


def _welcome(resources: Resources, url: str) -> None:
    from ppdd_core.package.signature import fingerprint, printable

    settings = resources.settings
    same = settings.site_title == settings.site_id
    typer.echo(f"{settings.site_title}{'' if same else f' ({settings.site_id})'} at {url}")
    typer.echo(f"signing key {printable(fingerprint(resources.key))}")
    link = _open_setup_link(resources)
    if link is not None:
        typer.echo("nobody can log in yet; open this in a browser to make the first administrator:")
        typer.echo(f"  {link}")
        typer.echo("or do it in another terminal:")
        typer.echo(f"  ppdd login '{link}'")
    typer.echo("Ctrl-C stops the node")


def _open_setup_link(resources: Resources) -> str | None:
    from services.auth import service

    with resources.sessions.begin() as session:
        return service.open_setup_link(session, resources.settings)


def _api_fault(port: int) -> str | None:
    import http.client

    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/api/v1/system/ready")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as err:
        return f"the API does not answer on port {port}: {type(err).__name__}"
    return None if status == 200 else f"the API is not ready: it answers {status}"


def _worker_fault() -> str | None:
    import socket

    from services.jobs import workers
    from services.kit.resources import open_resources

    here = f"@{socket.gethostname()}"
    with open_resources(_settings(None)) as resources, resources.sessions() as session:
        living = [one.name for one in workers.living(session) if one.name.endswith(here)]
    return None if living else f"no worker of this machine ({here}) was heard of lately"

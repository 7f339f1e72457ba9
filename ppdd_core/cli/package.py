"""`ppdd package`: look at a package, verify it, make it one file, take it in."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.arguments import checked_key, readable
from ppdd_core.cli.console import REFUSED, JsonOption, complain, emit
from ppdd_core.data.files import ppdd_home
from ppdd_core.errors import PackageError
from ppdd_core.package import canonical, manifest
from ppdd_core.package.archive import write_archive, write_folder
from ppdd_core.package.manifest import DUO, Manifest
from ppdd_core.package.signature import printable
from ppdd_core.package.verify import (
    Verification,
    open_verified,
    read_package,
    verify_files,
    verify_package,
)

app = typer.Typer(help="Packages: show, verify, export, import.", no_args_is_help=True)

PackagePath = Annotated[Path, typer.Argument(metavar="PATH", help="A package: folder or ZIP.")]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="FINGERPRINT",
        callback=checked_key,
        help="Accept no other signer: the key's fingerprint, learned from the site itself.",
    ),
]


@app.command()
def show(path: PackagePath, key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Say what a package is, how good, how private, and whether anything is wrong with it."""
    contents = read_package(path)
    found = verify_files(contents.files, refused=contents.refused, trusted_key=key, today=_today())
    if found.manifest is None:
        raise PackageError(
            f"{path} has no manifest that can be read; see: ppdd package verify {path}"
        )
    evaluation = _report(contents.files.get(manifest.EVALUATION))
    privacy = _report(contents.files.get(manifest.PRIVACY))
    value = {
        "manifest": manifest.to_dict(found.manifest),
        "summary": evaluation.get("summary", []),
        "privacy": {name: privacy.get(name) for name in ("verdict", "reasons")},
        "verification": found.to_dict(),
    }
    emit(value, as_json=as_json, render=_summary(found.manifest, found, evaluation, privacy))
    if not found.ok:
        complain(f"{len(found.faults)} faults; see: ppdd package verify {path}")
        raise typer.Exit(REFUSED)


@app.command()
def verify(path: PackagePath, key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Check signature, hashes, bounds and content; name every fault. Exit code 3 if there is one."""
    found = verify_package(path, trusted_key=key, today=_today())
    _print(found.to_dict(), _findings(found), as_json=as_json)
    if not found.ok:
        raise typer.Exit(REFUSED)


@app.command()
def export(
    path: PackagePath,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The ZIP to write, never over another file; default: NAME-VERSION.zip here."
        ),
    ] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a package and write it as one ZIP; the same package gives the same bytes."""
    package = open_verified(path, trusted_key=key)
    stated = package.manifest
    target = out or Path(f"{stated.name.split('/')[1]}-{stated.version}.zip")
    write_archive(package.files, target)
    value = {
        "archive": readable(target),
        "bytes": target.stat().st_size,
        **package.verification.to_dict(),
    }
    _print(value, [f"{readable(target)}  {_size(target.stat().st_size)}"], as_json=as_json)


@app.command("import")
def import_(
    path: PackagePath,
    into: Annotated[
        Path | None,
        typer.Option(help="The folder to make; default: $PPDD_HOME/packages/SITE/NAME/VERSION."),
    ] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a package and copy it into a folder, whole or not at all.

    What was verified is what is written. A version that is there already must be the same, byte for byte.
    """
    package = open_verified(path, trusted_key=key, today=_today())
    stated = package.manifest
    target = into or ppdd_home() / "packages" / stated.name / stated.version
    write_folder(package.files, target)
    value = {"folder": readable(target), **package.verification.to_dict()}
    _print(value, [readable(target), package.verification.signer], as_json=as_json)


def _print(value: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """Print JSON, or lines that stay lines whatever the terminal's width: people grep and copy them."""
    if as_json:
        emit(value, as_json=True, render="")
        return
    for line in lines:
        typer.echo(line)


def _today() -> date:
    return datetime.now(UTC).date()


def _report(data: bytes | None) -> dict[str, Any]:
    try:
        value = canonical.parse(data or b"{}", name="a report")
    except PackageError:
        return {}  # verification has named this fault
    return value if isinstance(value, dict) else {}


def _findings(found: Verification) -> list[str]:
    lines = [str(fault) for fault in found.faults]
    if found.ok and found.manifest is not None:
        stated = found.manifest
        lines.append(
            f"sound: {stated.name} {stated.version}, {len(stated.files) + 2} files checked"
        )
    lines.append(found.signer)
    if found.ok and not found.trusted:
        lines.append("compare the key with the site by another way, then pin it with --key")
    return lines + [f"note: {note}" for note in found.notes]


def _summary(
    stated: Manifest, found: Verification, evaluation: dict[str, Any], privacy: dict[str, Any]
) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    counts = stated.source["classes"]
    smallest = stated.source["suppressed_below"]
    classes = ", ".join(
        f"{name} ({f'< {smallest}' if counts[name] is None else f'≥ {counts[name]}'})"
        for name in stated.classes
    )
    recipe, shape = stated.recipe, stated.image_shape
    rows = {
        "package": f"{stated.name} {stated.version}",
        "site": f"{stated.site_name} ({stated.site_id}), {stated.created}",
        "images": f"{stated.images_per_class} per class, {shape[1]} x {shape[2]}, {stated.dtype}",
        "classes": f"{classes}: real images behind each",
        "learning rate": f"{stated.learning_rate:.6g}",
        "recipe": f"preset {recipe['preset']}, seed {recipe['seed']}",
        "usage": f"{stated.usage.licence}; "
        + "; ".join(DUO[code] for code in stated.usage.purposes),
        "last day of use": stated.usage.expires or "none set",
        "privacy": str(privacy.get("verdict", "unknown")),
        "key": printable(stated.key),
        "signature": f"{'sound' if found.ok else 'FAULTY'}, {found.signer.partition(' key ')[0]} key",
    }
    for name, text in rows.items():
        facts.add_row(Text(name, style="bold"), Text(text))
    return Group(
        facts, *_scores(evaluation), Text("For research only. Not for clinical decisions.")
    )


def _scores(evaluation: dict[str, Any]) -> list[RenderableType]:
    rows = [row for row in evaluation.get("summary", []) if isinstance(row, dict)]
    if not rows:
        return [Text("No evaluation was run for this package.")]
    table = Table("trained on", "network", "per class", "accuracy", "balanced", "AUROC")
    for row in rows:
        size = row.get("images_per_class")
        texts = [row.get("method"), row.get("architecture"), "all" if size is None else size]
        figures = [row.get(name) for name in ("accuracy", "balanced_accuracy", "macro_auroc")]
        table.add_row(*(Text(str(text)) for text in texts), *(Text(_spread(f)) for f in figures))
    return [table]


def _spread(value: Any) -> str:
    mean, sd = (value.get("mean"), value.get("sd")) if isinstance(value, dict) else (None, None)
    if not isinstance(mean, int | float):
        return "–"
    return f"{mean:.3f} ± {sd:.3f}" if isinstance(sd, int | float) else f"{mean:.3f}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"

"""`ppdd dataset check`: what a source dataset holds and what is wrong with it, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.console import DONE, REFUSED, JsonOption, emit, parse_pairs, progress_bar
from ppdd_core.data.check import Findings
from ppdd_core.data.dataset import load_images
from ppdd_core.data.names import shown

app = typer.Typer(
    help="Look at source datasets; their images never leave this machine.", no_args_is_help=True
)

WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="COL=VALUE",
        help="Keep the manifest's rows with this value in this column; several must all hold.",
    ),
]

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}
_UNREADABLE_SHOWN = 10


@app.callback()
def dataset() -> None:
    """Look at source datasets; their images never leave this machine."""


@app.command()
def check(
    path: Annotated[
        Path,
        typer.Argument(
            help="Folder or ZIP of class folders, or one with a manifest.csv, or a CSV manifest."
        ),
    ],
    where: WhereOption = None,
    image_size: Annotated[
        int,
        typer.Option("--image-size", metavar="N", help="Side of the squares that images become."),
    ] = 112,
    as_json: JsonOption = False,
) -> None:
    """Count classes and splits, list unreadable files, copies, leaks between splits and other faults.

    Exit code 3 when a finding is an error. Images are decoded into the cache, so that distilling
    them with the same image size starts at once.
    """
    with progress_bar("reading images") as update:
        data, findings = load_images(
            path, image_size=image_size, where=parse_where(where), on_progress=update
        )
    value = {"fingerprint": data.fingerprint, "image_size": image_size, **findings.to_dict()}
    emit(value, as_json=as_json, render=report(findings))
    raise typer.Exit(REFUSED if findings.errors else DONE)


def parse_where(options: Sequence[str] | None, option: str = "--where") -> dict[str, str]:
    """Return `["hospital=a"]` as `{"hospital": "a"}`; BadConfigError for other forms or repeats."""
    return parse_pairs(option, options or [], "COLUMN=VALUE")


def report(findings: Findings) -> RenderableType:
    """Return the findings as tables for a terminal."""
    parts: list[RenderableType] = [_counts(findings), _facts(findings)]
    if findings.unreadable:
        parts.append(_unreadable(findings))
    parts.append(_findings(findings))
    return Group(*parts)


def _counts(findings: Findings) -> Table:
    splits = [split for split in findings.splits if split] and list(findings.splits)
    table = Table(title="Images per class", title_justify="left")
    table.add_column("class")
    for split in splits:
        table.add_column(split or "unassigned", justify="right")
    table.add_column("all", justify="right")
    table.add_column("mean grey", justify="right")
    for name, count in findings.classes.items():
        of_splits = [f"{findings.splits[split][name]:,}" for split in splits]
        mean = f"{findings.grey_by_class[name].mean:.0f}"
        table.add_row(Text(_plain(name)), *of_splits, f"{count:,}", mean)
    table.add_section()
    sums = [f"{sum(findings.splits[split].values()):,}" for split in splits]
    table.add_row("all", *sums, f"{findings.images:,}", f"{findings.grey.mean:.0f}")
    return table


def _facts(findings: Findings) -> Text:
    width, height = findings.sizes.width, findings.sizes.height
    patients = "unknown" if findings.patients is None else f"{findings.patients:,}"
    bits = _listed(findings.sizes.bits, "{} bit: {:,}")
    lines = [
        f"patients    {patients}",
        f"originals   {width[0]}–{width[2]} x {height[0]}–{height[2]} pixels, "
        f"median {width[1]} x {height[1]}; {bits}",
        f"grey        mean {findings.grey.mean:.0f}, standard deviation {findings.grey.sd:.0f} of 255",
    ]
    return Text("\n".join(lines))


def _unreadable(findings: Findings) -> Table:
    files = findings.unreadable
    table = Table(
        title=f"Unreadable files, left out: {len(files):,}", title_justify="left", show_header=False
    )
    for file in files[:_UNREADABLE_SHOWN]:
        table.add_row(Text(file.reason))
    if len(files) > _UNREADABLE_SHOWN:
        table.add_row(f"and {len(files) - _UNREADABLE_SHOWN:,} more; --json lists all")
    return table


def _findings(findings: Findings) -> RenderableType:
    if not findings.findings:
        return Text("Nothing wrong was found.", style="green")
    table = Table(title="Findings", title_justify="left", show_header=False, show_lines=True)
    for finding in findings.findings:
        what = Text.assemble(finding.message, "\n", (finding.advice, "italic"))
        table.add_row(
            Text(finding.severity, style=_STYLES[finding.severity]),
            what,
            Text(finding.code, style="dim"),
        )
    return table


def _listed(counts: Mapping[str, int], form: str) -> str:
    return ", ".join(form.format(name, count) for name, count in counts.items())


def _plain(name: str) -> str:
    """Return a class name without quotes where it is harmless."""
    return name if name.isprintable() and len(name) <= 40 else shown(name, 40)

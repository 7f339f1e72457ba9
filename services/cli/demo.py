"""`ppdd demo`: two hospitals' nodes on one machine, from X-rays to a detector at the hospital that never saw them.

Hospital A registers its images, distils them over REST and releases the package. Hospital B pulls it with a token that
A gave out, verifies it, trains a detector and tries it on its own images. Only the package passes from A to B.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.console import JsonOption, emit, err, out, progress_bar, remark
from ppdd_core.cli.dataset import parse_where
from ppdd_core.cli.distill import evaluation_table, resumes_when_there_is_room
from ppdd_core.cli.picture import half_blocks, side_by_side
from ppdd_core.data.dataset import count_shared, load_images
from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.data.phantom import write_phantoms
from ppdd_core.errors import BadConfigError, CheckpointError, Interrupted
from ppdd_core.presets import preset
from services.cli.hospitals import USERNAME, Hospital, run_hospital
from services.cli.package import address
from services.cli.program import Commands
from services.cli.remote import API, NodeError
from services.cli.watch import watch

app = Commands()

IMAGES_A, IMAGES_B, DRAWN_AT, USED_AT = 3000, 1000, 64, 32
DATASET, NAME, VERSION, DETECTOR = "chest", "chest-demo", "0.1.0", "from-hospital-a"
PACKAGE = f"hospital-a/{NAME}@{VERSION}"
FROM_NEIGHBOUR = {
    "PPDD_PULL__ALLOW_HTTP": "true",
    "PPDD_PULL__ALLOW_PRIVATE": "true",
}  # one machine, no TLS

_Rows = tuple[Path, Mapping[str, str]]  # a dataset, and which of its rows


@dataclass(frozen=True, slots=True)
class _Plan:
    a: _Rows
    b: _Rows
    ipc: int
    seed: int


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Own X-rays instead of drawn ones; then --elsewhere says which are B's."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="COL=VALUE", help="Rows of --data that are A's.")
    ] = None,
    elsewhere: Annotated[
        list[str] | None, typer.Option(metavar="COL=VALUE", help="Rows of --data that are B's.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where everything is kept.")] = Path("demo"),
    ipc: Annotated[int, typer.Option(help="Distilled images per class.")] = 1,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 0,
    once: Annotated[
        bool,
        typer.Option("--once", help="Stop both nodes at the end instead of leaving them running."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run two hospitals' nodes here: A distils and releases, B pulls, trains and tests; shows tables and images."""
    preset("quick", ipc).override(
        {"seed": seed}
    )  # refuses what the node would refuse, before anything is drawn
    own = _own_rows(data, parse_where(where), parse_where(elsewhere, "--elsewhere"))
    if own:
        _refuse_shared(own)
    with resumes_when_there_is_room(folder):
        _belongs(folder, {"seed": seed, "ipc": ipc})
        a, b = own or _drawn(folder, seed)
    plan = _Plan(a, b, ipc, seed)
    with _stopping(), contextlib.ExitStack() as stack:
        err.print("Starting the nodes of hospital A and hospital B …", style="bold")
        hospital_a = stack.enter_context(
            _hospital(folder, "hospital-a", "Hospital A (demo)", plan.a, {})
        )
        hospital_b = stack.enter_context(
            _hospital(folder, "hospital-b", "Hospital B (demo)", plan.b, FROM_NEIGHBOUR)
        )
        try:
            version = _distil(hospital_a, plan)
            err.print(
                f"Hospital B pulls {PACKAGE} with a token of A, and trains on it …", style="bold"
            )
            metrics = _pull_and_train(hospital_a, hospital_b, plan)
        except KeyboardInterrupt:
            raise Interrupted("stopped; the same command goes on from there") from None
        value = {
            "package": PACKAGE,
            "evaluation": version["evaluation"],
            "privacy": version["privacy"]["verdict"],
        }
        emit(
            value | {"hospital_b": metrics},
            as_json=as_json,
            render=Group(
                _a_table(version),
                _picture(hospital_a, version),
                _b_table(metrics),
                Text(_where(folder, hospital_a, hospital_b)),
            ),
        )
        if not once:
            remark("both nodes go on; Ctrl-C stops them")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()


# ------------------------------------------------------------------------------------------ the two hospitals


def _hospital(folder: Path, site: str, title: str, rows: _Rows, settings: Mapping[str, str]) -> Any:
    return run_hospital(
        folder / site,
        site=site,
        title=title,
        data_root=rows[0].absolute().parent,
        settings=settings,
    )


def _distil(at: Hospital, plan: _Plan) -> dict[str, Any]:
    """Return the released version, making of it what is not there yet."""
    try:
        version = at.node.get(address(PACKAGE))
    except NodeError as missing:
        if missing.status != 404:
            raise
        _register(at, plan.a)
        err.print(f"Hospital A distils {plan.ipc} images per class …", style="bold")
        watch(at.node, _resumed(at, _job(at, plan)))
        version = at.node.get(address(PACKAGE))
    if version["state"] == "draft":
        version = at.node.post(f"{address(PACKAGE)}/release", {})
        err.print(
            f"Hospital A releases {PACKAGE}: its privacy report {version['privacy']['verdict']}.",
            style="bold",
        )
    return dict(version)


def _job(at: Hospital, plan: _Plan) -> dict[str, Any]:
    body = {
        "kind": "distill", "dataset": DATASET, "preset": "quick", "images_per_class": plan.ipc, "seed": plan.seed,
        "package": {"name": NAME, "version": VERSION, "licence": "CC0-1.0", "purposes": ["DUO:0000042"]},
    }  # fmt: skip
    return dict(at.node.post("/jobs", body, headers={"Idempotency-Key": "demo distillation"}))


def _pull_and_train(a: Hospital, b: Hospital, plan: _Plan) -> dict[str, Any]:
    """Return how well B's detector, trained on A's package alone, does on B's images."""
    try:
        b.node.get(address(PACKAGE))
    except NodeError as missing:
        if missing.status != 404:
            raise
        asked = {"url": a.url, "package": PACKAGE, "token": _token_for_b(a), "key": a.key}
        watch(b.node, b.node.post("/pulls", asked)["id"])
    _register(b, plan.b)
    detector = next((one for one in b.node.rows("/detectors") if one["name"] == DETECTOR), None)
    if detector is None:
        detector = b.node.post(
            "/detectors",
            {"name": DETECTOR, "packages": [PACKAGE], "epochs": 300, "seed": plan.seed},
        )
    if detector["state"] != "ready":
        watch(b.node, _resumed(b, b.node.get(f"/jobs/{detector['job_id']}")))
    measured = f"/detectors/{detector['id']}/evaluations"
    if not b.node.get(measured)["items"]:
        watch(b.node, b.node.post(measured, {"dataset": DATASET, "split": "all"})["job_id"])
    return dict(b.node.get(measured)["items"][0])


def _token_for_b(a: Hospital) -> str:
    """Return a token with which B may read what A released: an account of its own, no password."""
    if not any(user["username"] == "hospital-b" for user in a.node.rows("/users")):
        a.node.post(
            "/users", {"username": "hospital-b", "display_name": "Hospital B", "role": "peer"}
        )
    made = a.node.post(
        "/tokens",
        {"name": "demo", "scopes": ["packages:read"], "days": 1, "username": "hospital-b"},
    )
    return str(made["token"])


def _register(at: Hospital, rows: _Rows) -> None:
    path, where = rows
    if not any(known["name"] == DATASET for known in at.node.rows("/datasets")):
        at.node.post(
            "/datasets", {"name": DATASET, "path": str(path.absolute()), "rows": dict(where)}
        )


def _resumed(at: Hospital, job: Mapping[str, Any]) -> str:
    """Return the job's id, after letting it go on where it had ended badly."""
    if job["state"] in ("failed", "cancelled"):
        at.node.post(f"/jobs/{job['id']}/resume")
    return str(job["id"])


@contextlib.contextmanager
def _stopping() -> Any:
    """Let SIGTERM end the demo as Ctrl-C does, so that its nodes are stopped."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------------ whose images


def _own_rows(
    data: Path | None, where: dict[str, str], elsewhere: dict[str, str]
) -> tuple[_Rows, _Rows] | None:
    """Return A's and B's rows of `data`, or None for drawn images; BadConfigError for half of the options."""
    if data is None:
        if where or elsewhere:
            raise BadConfigError("--where and --elsewhere choose rows of --data; give that as well")
        return None
    if not elsewhere:
        raise BadConfigError(
            "--data needs --elsewhere COL=VALUE, which says which of its rows are hospital B's: B tries its "
            "detector on images that A did not train on. With one hospital's images only, use ppdd distill"
        )
    return (data, where), (data, elsewhere)


def _refuse_shared(own: tuple[_Rows, _Rows]) -> None:
    """Refuse images or patients that are both A's and B's."""
    with progress_bar("reading images") as update:
        ours, theirs = (
            load_images(path, image_size=USED_AT, where=rows or None, on_progress=update)[0]
            for path, rows in own
        )
    shared = count_shared(theirs, ours)
    if shared:
        raise BadConfigError(
            f"{shared:,} of hospital B's images (--elsewhere) are A's too, or of A's patients; "
            "choose A's rows with --where so that they share none"
        )


def _belongs(folder: Path, choices: dict[str, int]) -> None:
    """Tie the folder to its choices before anything is drawn; a demo with others is refused."""
    path = folder / "demo.json"
    if not path.exists():
        write_atomically(path, json_bytes(choices))
        return
    try:
        known = dict(json.loads(path.read_bytes()))
    except ValueError:
        raise CheckpointError(
            f"{path} is damaged; delete {folder} or choose another --out"
        ) from None
    for name, value in choices.items():
        if known.get(name) != value:
            raise CheckpointError(
                f"{folder} holds a demo with --{name} {known.get(name)}; choose another --out for {value}, "
                f"or give --{name} {known.get(name)} to go on with this one"
            )


def _drawn(folder: Path, seed: int) -> tuple[_Rows, _Rows]:
    """Return hospital A's and hospital B's drawn images, drawing what is not there."""
    drawn = []
    for site, images in (("a", IMAGES_A), ("b", IMAGES_B)):
        place = folder / f"hospital-{site}" / "images" / "drawn"
        if not place.exists():
            with progress_bar(f"drawing X-rays of hospital {site.upper()}") as update:
                write_phantoms(
                    place,
                    images=images,
                    image_size=DRAWN_AT,
                    seed=seed,
                    site=site,
                    on_progress=update,
                )
        drawn.append((place, dict[str, str]()))
    return drawn[0], drawn[1]


# ------------------------------------------------------------------------------------------ what is shown


def _a_table(version: Mapping[str, Any]) -> RenderableType:
    verdict = version["privacy"]["verdict"]
    return Group(
        evaluation_table(f"{PACKAGE}, on hospital A's test images", version["evaluation"]),
        Text.assemble(
            "privacy report: ", (verdict, "green" if verdict == "passed" else "bold red")
        ),
        *(Text(f"  {reason}") for reason in version["privacy"]["reasons"]),
    )


def _picture(at: Hospital, version: Mapping[str, Any]) -> RenderableType:
    """Return one distilled image per class, drawn in the terminal where it shows colours."""
    if not out.is_terminal or out.color_system != "truecolor":
        return Text()
    files = sorted(
        one["path"] for one in version["files"] if one["path"].startswith("previews/image-")
    )
    pictures = []
    for path in files[:: version["images_per_class"]]:
        answer = at.node.client.get(f"{API}{address(PACKAGE)}/files/{path}")
        with Image.open(io.BytesIO(answer.content)) as image:
            pictures.append(np.asarray(image.convert("L").resize((32, 32))))
    return Group(
        Text(f"One distilled image each of {', '.join(version['classes'])}:"),
        half_blocks(side_by_side(pictures)),
    )


def _b_table(metrics: Mapping[str, Any]) -> Table:
    table = Table("class", "images", "sensitivity", "specificity", title_justify="left")
    table.title = (
        f"Hospital B's detector, trained on the package alone, on B's own images: accuracy {metrics['accuracy']:.3f}, "
        f"balanced {metrics['balanced_accuracy']:.3f}"
    )
    for row in metrics["per_class"]:
        shares = [
            f"{row[name]:.3f} ({row[f'{name}_interval'][0]:.2f}–{row[f'{name}_interval'][1]:.2f})"
            for name in ("sensitivity", "specificity")
            if row[name] is not None
        ]
        table.add_row(row["class"], str(row["images"]), *shares)
    return table


def _where(folder: Path, a: Hospital, b: Hospital) -> str:
    lines = [
        f"\n{one.title}: {one.url}, account {USERNAME}, password in {folder / one.site / 'account.json'}"
        for one in (a, b)
    ]
    again = f"ppdd login {a.url} --username demo"
    return (
        "".join(lines)
        + f"\n\nTry next, while the nodes run:\n  {again}\n  ppdd package list\n  ppdd job list\n"
    )

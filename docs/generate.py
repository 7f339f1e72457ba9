"""Write what can be read off the code: `recipe.md`, `settings.md`, `commands.md` and the file tree in `README.md`.

`make fix` runs this; tests/architecture compares, so the pages cannot fall behind. Prose lives in the pages
that people write.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined
from typer.core import TyperGroup

from ppdd_core import config
from ppdd_core.cli.main import app
from ppdd_core.errors import BadConfigError
from services.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parent.parent
TREE_START, TREE_END = (
    "<!-- tree: written by docs/generate.py -->\n```\n",
    "```\n<!-- end of tree -->",
)

# ------------------------------------------------------------------------------------------- recipe

GROUPS: dict[str, type] = {
    "": config.Recipe,
    **{
        name: kind
        for name, kind in typing.get_type_hints(config.Recipe).items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    },
}

# Fields whose name says enough in the code, said once for the reader of the page.
MEANINGS = {
    "preset": "name of the starting point; recorded, decides nothing",
    "seed": "every random number of the run comes from it",
    "image_size": "side of the square the images are resized to, pixels",
    "net": "the network that teachers and students share",
    "net.architecture": "which network",
    "teacher.lr": "step size of SGD",
    "teacher.momentum": "momentum of SGD",
    "teacher.weight_decay": "L2 penalty of SGD",
    "teacher.batch_size": "images per step",
    "teacher.augment": "operations applied to batches, one drawn per batch",
    "teacher.dtype": "how stored snapshots are rounded",
    "distill.images_per_class": "IPC: synthetic images of every class",
    "distill.prune_below": "σ: similarity under which a parameter is dropped; 0 = MTT, nothing dropped",
    "distill.max_start_epoch": "I⁺: the epochs a student may start from are 0 to I⁺ - 1",
    "distill.lr_init": "α₀: the student's step size before it is learned",
    "distill.lr_min": "lower bound of the learned α",
    "distill.lr_max": "upper bound of the learned α",
    "distill.lr_lr": "step size for α",
    "distill.momentum": "momentum of the steps of images and α",
    "distill.similarity": "which reading of parameter similarity σ is compared with (below)",
    "distill.init": "where synthetic images start (below)",
    "distill.augment": "the same operations for synthetic images",
    "distill.engine": "how the gradient is computed (below)",
    "detector.epochs": "passes over the images",
    "detector.batch_size": "images per step",
    "detector.momentum": "momentum of SGD",
    "detector.weight_decay": "L2 penalty of SGD",
    "detector.augment": "operations applied to batches, one drawn per batch",
    "privacy.max_near_copies": "near-copies that may exist",
}

# Where one field's limits are other fields.
LIMITS = {
    "distill.lr_init": "from `lr_min` to `lr_max`",
    "distill.lr_min": "above 0, up to `lr_init`",
    "distill.lr_max": "from `lr_init` to 100",
}

CHOICES = {
    "init": {
        "noise": "Gaussian noise of the dataset's own mean and spread: no real image is looked at. The default.",
        "real": "one real image per synthetic image, as MTT does. Recognisable afterwards: the main known leak.",
        "mean": "the average of `mean_of` real images of the class.",
    },
    "labels": {
        "hard": "each image belongs to its class. The default, and the paper's.",
        "soft": "each image has a probability of every class, learned with the images.",
    },
    "engine": {
        "reverse": "recomputes one step at a time: memory does not grow with J. Exact. The default.",
        "unroll": "plain autograd through all J steps: the reference that `reverse` is tested against.",
    },
}


def recipe_page() -> str:
    """Return `docs/recipe.md`: every field, its default, what it may be and what it means."""
    parts = [
        "# Every field of a recipe\n",
        "Written by `docs/generate.py` from `ppdd_core/config.py`; do not edit. A recipe is recorded whole in the",
        "manifest of its package. Set a field with `--set NAME=VALUE`, for example",
        "`--set distill.iterations=500`. σ, J, K, T, I⁺ and α are the symbols of Li et al. 2023, Algorithm 1.\n",
    ]
    for group, kind in GROUPS.items():
        parts += [f"## `{group}`" if group else "## The recipe itself", "", _summary(kind), ""]
        parts += ["| field | default | may be | meaning |", "|---|---|---|---|"]
        parts += [_row(*row) for row in recipe_fields(group)]
        parts.append("")
    parts += ["## Choices", "", "### `distill.similarity`: when do two parameters agree?", ""]
    parts += [
        "Neither the paper nor any public code gives the formula, so each plausible reading has a name.",
        "",
    ]
    parts += [f"- `{name}`: {text}" for name, text in similarity_meanings().items()]
    for field, choices in CHOICES.items():
        parts += ["", f"### `distill.{field}`", ""]
        parts += [f"- `{name}`: {text}" for name, text in choices.items()]
    return "\n".join(parts) + "\n"


def recipe_fields(group: str) -> Iterator[tuple[str, object, str, str]]:
    """Yield (dotted name, default, what it may be, meaning) for the plain fields of one group."""
    kind = GROUPS[group]
    hints, comments, defaults = typing.get_type_hints(kind), _comments(kind), kind()
    for field in dataclasses.fields(kind):
        name = f"{group}.{field.name}" if group else field.name
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        meaning = MEANINGS.get(name) or comments.get(field.name, "")
        allowed = LIMITS.get(name) or _allowed(kind, field.name, hints[field.name])
        yield name, getattr(defaults, field.name), allowed, meaning


def similarity_meanings() -> dict[str, str]:
    """Return the first sentence of every similarity's docstring, by name."""
    tree = ast.parse((ROOT / "ppdd_core/distill/matching.py").read_text(encoding="utf-8"))
    docs = {f.name: ast.get_docstring(f) or "" for f in tree.body if isinstance(f, ast.FunctionDef)}
    names: tuple[str, ...] = typing.get_args(config.Similarity)
    return {name: docs.get(name, "").split("\n\n")[0].removeprefix("Return ") for name in names}


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n\n")[0]


def _row(name: str, default: object, allowed: str, meaning: str) -> str:
    cells = [f"`{name}`", f"`{default}`", allowed, meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _allowed(kind: type, name: str, hint: Any) -> str:
    """Return what a field may be, in the words with which the code refuses a wrong value."""
    choices = typing.get_args(hint)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    try:
        kind(**{name: "?" if hint is str else -1})
    except BadConfigError as refusal:
        return str(refusal).split(" must be ", 1)[1].rsplit(", got ", 1)[0]
    return "text" if hint is str else "any number"


def _comments(kind: type) -> dict[str, str]:
    """Return the trailing comment of every field of a dataclass in `config.py`."""
    source = Path(config.__file__).read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    body = next(
        n.body
        for n in ast.parse(source).body
        if isinstance(n, ast.ClassDef) and n.name == kind.__name__
    )
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            found[node.target.id] = " ".join(by_line[n] for n in lines if n in by_line)
    return found


# ----------------------------------------------------------------------------------------- settings


def settings_page() -> str:
    """Return `docs/settings.md`: every setting of a node, its default, what it may be and what it means."""
    parts = [
        "# Every setting of a node\n",
        "Written by `docs/generate.py` from `services/settings.py`; do not edit. A setting is an environment variable;",
        "with `_FILE` behind its name it is the path of a file that holds the value, which is how secrets should be",
        "given. A `PPDD_` name that is not here is refused at start, and so are placeholders and weak secrets. With",
        "nothing set the node is embedded: everything lies in `PPDD_DATA_DIR`. What decides a distillation is not here",
        "but in [the recipe](recipe.md).\n",
    ]
    plain = [row for row in setting_rows() if "__" not in row[0]]
    parts += ["| variable | default | may be | meaning |", "|---|---|---|---|"]
    parts += [_setting(*row) for row in plain]
    for name, field in Settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            parts += ["", f"## `{PREFIX}{name.upper()}__…`", "", (kind.__doc__ or "").strip(), ""]
            parts += ["| variable | default | may be | meaning |", "|---|---|---|---|"]
            inside = f"{PREFIX}{name.upper()}__"
            parts += [_setting(*row) for row in setting_rows() if row[0].startswith(inside)]
    return "\n".join(parts) + "\n"


def setting_rows() -> Iterator[tuple[str, Any, str, str]]:
    """Yield (variable, default, what it may be, meaning) of every setting."""

    def rows(prefix: str, model: type[BaseModel]) -> Iterator[tuple[str, Any, str, str]]:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from rows(f"{prefix}{name.upper()}__", kind)
            else:
                default = SETTING_DEFAULTS.get(name, field.default)
                meaning = field.description or ""
                yield (
                    f"{prefix}{name.upper()}",
                    default,
                    _setting_kind(kind, field.metadata),
                    meaning,
                )

    return rows(PREFIX, Settings)


# Where the default depends on the machine.
SETTING_DEFAULTS = {"data_dir": "$PPDD_HOME/node, or ~/.local/share/ppdd/node"}


def _setting_kind(kind: Any, bounds: list[Any]) -> str:
    """Return what a setting may be, in words."""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in choices)
    if SecretStr in (kind, *choices):
        return "a secret"
    if kind is bool:
        return "`true`, `false`"
    limits = {type(one).__name__: one for one in bounds}
    low, high, above = (limits.get(name) for name in ("Ge", "Le", "Gt"))
    words = [
        f"from {low.ge:,}" if low else "",
        f"above {above.gt:,}" if above else "",
        f"to {high.le:,}" if high else "",
    ]
    return " ".join(word for word in words if word)


def _setting(variable: str, default: Any, allowed: str, meaning: str) -> str:
    unset = default is None or default is PydanticUndefined or default in ("", ())
    shown = "" if unset else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    return f"| `{variable}` | {shown} | {allowed} | {meaning} |".replace("  ", " ")


# ----------------------------------------------------------------------------------------- commands


def commands_page() -> str:
    """Return `docs/commands.md`: every command of `ppdd` with its arguments and options."""
    parts = [
        "# Every command\n",
        "Written by `docs/generate.py` from the program itself; do not edit. Data goes to stdout, progress and",
        "errors to stderr; `NO_COLOR` is honoured.\n",
        "| exit code | meaning |\n|---|---|\n| 0 | done |\n| 1 | failed |",
        "| 2 | wrong usage: an option or a recipe that cannot work |",
        "| 3 | refused by a check: a package that fails verification, findings that block, an unsafe file |",
        "| 130 | stopped by Ctrl-C or SIGTERM |\n",
        "Stopped, `distill`, `teachers train` and `demo` say what is kept and go on when run again; other",
        "commands start anew. A privacy verdict of `failed` is no exit code: the package is written, and a",
        "warning on stderr says what failed; look before you release it.\n",
    ]
    for path, command in commands():
        parts += [
            f"## `ppdd {' '.join(path)}`\n",
            (command.help or "").strip().replace("\n\n", "\n\n"),
            "",
        ]
        rows = [_option(p) for p in command.params if not p.hidden and p.name != "help"]
        if rows:
            parts += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(parts).rstrip() + "\n"


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (words, command) for every command that does something, in the program's order."""

    def walk(
        path: tuple[str, ...], command: Any, above: Any
    ) -> Iterator[tuple[tuple[str, ...], Any]]:
        if not isinstance(command, TyperGroup):
            yield path, command
            return
        context = command.make_context(
            path[-1] if path else "ppdd", [], parent=above, resilient_parsing=True
        )
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from walk((*path, name), child, context)

    return walk((), typer.main.get_command(app), None)


def _option(param: Any) -> str:
    argument = param.param_type_name == "argument"
    name = (param.metavar or param.name.upper()).rstrip("….") + ("…" if param.nargs == -1 else "")
    spelled = (
        f"`{name}`"
        if argument
        else ", ".join(f"`{o}`" for o in (*param.opts, *param.secondary_opts))
    )
    if not argument and param.metavar:
        spelled += f" `{param.metavar}`"
    unset = param.required or param.default is None or param.default in (False, "", (), [])
    default = "required" if param.required else "" if unset else f"`{param.default}`"
    meaning = " ".join((getattr(param, "help", None) or "").split())
    return f"| {spelled} | {default} | {meaning} |".replace("  ", " ")


# -------------------------------------------------------------------------------------------- tree

# What the tree says of things that have no docstring to say it for them.
PHRASES = {
    "README.md": "this page",
    "pyproject.toml": "dependencies, tools, and who may import whom",
    "requirements.lock": "exact packages with hashes: base (`-worker` adds torch, `-dev` the tools)",
    "Makefile": "setup, demo, test, check, fix, bench: `make` lists them",
    ".ci/run": "what CI runs",
    "CHANGELOG.md": "what changed, in users' words",
    "SECURITY.md": "how to report a weakness",
    "LICENSE": "Apache-2.0",
    "benchmarks": "measurements that can be run again",
    "ppdd_core": "the algorithm: a library that knows no service, and the program `ppdd`",
    "ppdd_core/cli": "the program `ppdd`: one module per noun",
    "ppdd_core/package": "distilled set to signed package, and back",
    "ppdd_core/data": "hospital images to a dataset, and what distillation makes of it",
    "ppdd_core/nets": "networks as pure functions of one flat parameter vector",
    "ppdd_core/sweep": "many distillations side by side, in one report",
    "ppdd_core/teachers": "dataset to trajectories",
    "ppdd_core/distill": "trajectories to a distilled set: Algorithm 1",
    "ppdd_core/privacy": "real images against a distilled set: the privacy report",
    "ppdd_core/detector": "packages to a detector, and how good it is",
    "docker-compose.yml": "one hospital: proxy, api, workers, database, broker, object store",
    "deploy": "images and proxy for docker compose",
    "services": "the node: API, rules, tables and commands; torch-free",
    "services/auth": "people, tokens, logins; who may do what",
    "services/audit": "who did what, and what was refused: append-only and hash-chained",
    "services/catalogue": "packages, their versions and files; the release gate",
    "services/cli": "commands that run a node or speak to one",
    "services/datasets": "source datasets that stay in the hospital",
    "services/detectors": "detectors trained here, and how well they do",
    "services/jobs": "queued, running, succeeded, failed, cancelled: the table is the truth",
    "services/kit": "plumbing that knows no feature",
    "services/peers": "other hospitals' nodes",
    "services/system": "the node about itself",
    "worker": "what computes: a Celery slot and a fresh process per job",
    "worker/tasks": "one module per kind of job",
    "migrations": "how the database became what it is",
    "docs/recipe.md": "every field of a recipe",
    "docs/settings.md": "every setting of a node",
    "docs/commands.md": "every command",
    "docs/privacy.md": "what is measured, and what that does not show",
    "docs/guides": "how to do one thing",
    "docs/decisions": "why it is so: one page per decision",
    "docs/results": "what was measured, with the commands that did it",
    "tests/core": "mirrors ppdd_core",
    "tests/services": "mirrors services",
    "tests/worker": "mirrors worker",
    "tests/architecture": "the rules of the house, as tests",
}
PROGRAM = ("ppdd_core", "services", "worker", "migrations")
WIDTH = 30


def file_tree() -> str:
    """Return the tree in README: one line per file of the program, one phrase each."""
    lines: list[str] = []
    for name in sorted(PHRASES, key=_order):
        if "/" not in name and name not in PROGRAM and _is_there(ROOT / name):
            lines.append(_line(0, name + ("/" if (ROOT / name).is_dir() else ""), PHRASES[name]))
    for name in PROGRAM:
        lines += ["", *_package(ROOT / name, 0)]
    for folder in ("docs", "tests", ".ci"):
        lines += ["", f"{folder}/"]
        inside = [n for n in PHRASES if n.startswith(f"{folder}/") and _is_there(ROOT / n)]
        for name in inside:
            leaf = name.removeprefix(f"{folder}/") + ("/" if (ROOT / name).is_dir() else "")
            lines.append(_line(1, leaf, PHRASES[name]))
    return "\n".join(lines) + "\n"


def readme() -> str:
    """Return `README.md` with its tree renewed."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = text.split(TREE_START, 1)
    return before + TREE_START + file_tree() + TREE_END + rest.split(TREE_END, 1)[1]


def _is_there(path: Path) -> bool:
    """Tell whether git would see it: an empty folder does not count."""
    return path.is_file() or any(path.glob("*.*"))


def _order(name: str) -> tuple[bool, int]:
    return (ROOT / name).is_dir(), list(PHRASES).index(name)


def _package(folder: Path, depth: int) -> Iterator[str]:
    name = folder.relative_to(ROOT).as_posix()
    yield _line(depth, f"{folder.name}/", PHRASES.get(name) or _phrase(folder / "__init__.py"))
    modules = sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
    packages = sorted(p.parent for p in folder.glob("*/__init__.py"))
    for path in (*modules, *packages):
        if path.is_dir():
            yield from _package(path, depth + 1)
        else:
            yield _line(depth + 1, path.name, _phrase(path))


def _phrase(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(doc.split("\n\n")[0].split())
    return first.split(". ")[0].rstrip(".")


def _line(depth: int, name: str, phrase: str) -> str:
    return f"{'  ' * depth + name:<{WIDTH}} {phrase}".rstrip()


PAGES = {
    "docs/recipe.md": recipe_page,
    "docs/settings.md": settings_page,
    "docs/commands.md": commands_page,
    "README.md": readme,
}

if __name__ == "__main__":
    for place, page in PAGES.items():
        (ROOT / place).write_text(page(), encoding="utf-8")

"""What reads packages or serves a node has no torch: what it imports must not need it, not even indirectly."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMISED = (
    "ppdd_core",
    "ppdd_core.cli.main",
    "ppdd_core.config",
    "ppdd_core.data.check",
    "ppdd_core.data.dataset",
    "ppdd_core.data.images",
    "ppdd_core.data.phantom",
    "ppdd_core.data.sources",
    "ppdd_core.errors",
    "ppdd_core.package.archive",
    "ppdd_core.package.manifest",
    "ppdd_core.package.signature",
    "ppdd_core.package.verify",
    "ppdd_core.privacy.report",
    "ppdd_core.seeding",
)
# The extra `worker`, and what only developers have.
HEAVY = (
    "torch",
    "torchvision",
    "sklearn",
    "scipy",
    "matplotlib",
    "mlcroissant",
    "pytest",
    "hypothesis",
)

PROBE = """
import importlib, sys
heavy = set(sys.argv[1].split(","))
for name in sys.argv[2:]:
    importlib.import_module(name)
    found = heavy & set(sys.modules)
    if found:
        sys.exit(f"importing {name} imports {', '.join(sorted(found))}")
"""


def heavy_imports(*modules: str, heavy: tuple[str, ...] = HEAVY) -> str:
    """Return what a fresh interpreter says of importing `modules` one after the other; empty is good."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(heavy), *modules],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.stderr if done.returncode else ""


def modules_that_say_so() -> list[str]:
    """Return the modules whose docstring calls them torch-free, and every command module."""
    found = []
    for path in sorted((ROOT / "ppdd_core").rglob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        command = path.parent.name == "cli"
        if command or "torch-free" in doc.lower():
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(part for part in parts if part != "__init__"))
    return found


def test_promised_modules_import_without_torch() -> None:
    assert heavy_imports(*PROMISED) == ""


def test_modules_that_call_themselves_torch_free_are() -> None:
    assert heavy_imports(*modules_that_say_so()) == ""


def test_the_api_imports_without_torch() -> None:
    assert heavy_imports("services.app") == ""


def test_every_module_of_the_node_imports_without_torch() -> None:
    modules = [
        ".".join(
            part for part in path.relative_to(ROOT).with_suffix("").parts if part != "__init__"
        )
        for path in sorted((ROOT / "services").rglob("*.py"))
    ]
    assert len(modules) > 50
    assert heavy_imports(*modules) == ""


def test_the_worker_that_supervises_imports_without_torch() -> None:
    assert heavy_imports("worker.app", "worker.__main__") == ""


def test_a_jobs_process_starts_without_the_http_framework() -> None:
    # what its tasks import is a contract in pyproject.toml; torch itself would take seconds here
    assert heavy_imports("worker.run", "worker.app", heavy=("fastapi", "starlette")) == ""
    assert "imports fastapi" in heavy_imports("services.kit.problems", heavy=("fastapi",))


def test_the_probe_notices_torch() -> None:
    assert "ppdd_core.data.tensors imports torch" in heavy_imports("ppdd_core.data.tensors")


@pytest.mark.parametrize("arguments", [("--version",), ("--help",)])
def test_the_program_starts_without_torch(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; from ppdd_core.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr

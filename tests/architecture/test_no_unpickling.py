"""Nothing here runs code that came as data. Ruff bans the imports; this also finds what ruff cannot name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BANNED_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
}
BANNED_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.save",
    "yaml.load",
    "os.system",
    "pickle.loads",
}
BANNED_METHODS = {"extractall"}
BANNED_FLAGS = {"allow_pickle": True, "shell": True, "weights_only": False}


def dangers(source: str) -> list[str]:
    """Return what in a module's source could run code that came as data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        found += [f"import {name}" for name in names if name.split(".")[0] in BANNED_MODULES]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in BANNED_CALLS or called.rpartition(".")[2] in BANNED_METHODS:
                found.append(called)
            found += [
                f"{called}({flag.arg}=…)"
                for flag in node.keywords
                if flag.arg in BANNED_FLAGS
                and not (
                    isinstance(flag.value, ast.Constant)
                    and flag.value.value is not BANNED_FLAGS[flag.arg]
                )
            ]
    return found


def test_no_module_runs_data_as_code() -> None:
    found = {
        str(path.relative_to(ROOT)): said
        for folder in ("ppdd_core", "services", "worker", "migrations", "benchmarks", "docs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (said := dangers(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "archive.extractall(path)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_scan_notices(source: str) -> None:
    assert dangers(source)


def test_the_scan_lets_safe_calls_pass() -> None:
    assert dangers("np.load(path, allow_pickle=False); model.eval()") == []

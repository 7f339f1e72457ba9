from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import ppdd_core


def test_every_public_name_loads_and_is_documented() -> None:
    assert dir(ppdd_core) == sorted(ppdd_core.__all__)
    for name in ppdd_core.__all__:
        value = getattr(ppdd_core, name)
        if name != "__version__":
            assert value.__name__ == name
            assert inspect.getdoc(value)


def test_the_version_is_semantic() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", ppdd_core.__version__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = ppdd_core.nonsense


def test_neither_importing_nor_torch_free_names_load_torch() -> None:
    code = (
        "import sys, ppdd_core\n"
        "ppdd_core.verify_package, ppdd_core.Manifest, ppdd_core.Recipe, ppdd_core.PackageError\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0

"""The public names of a package are the same for Python, which imports them when used, and for type checkers."""

import ast
import importlib
from pathlib import Path

import pytest

FACES = ["phonedata", "phonetrain"]


def names_for_checkers(package: str) -> dict[str, str]:
    """Public name -> module, as the imports under TYPE_CHECKING say; each is `from .module import name as name`."""
    path = Path(importlib.import_module(package).__file__)
    (block,) = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If) and
                ast.unparse(node.test) == "TYPE_CHECKING"]  # fmt: skip
    assert all(isinstance(line, ast.ImportFrom) and line.level == 1 for line in block.body)
    return {alias.asname: line.module for line in block.body for alias in line.names if alias.name == alias.asname}


@pytest.mark.parametrize("package", FACES)
def test_checkers_see_the_names_that_python_imports(package):
    assert names_for_checkers(package) == importlib.import_module(package)._MODULES


@pytest.mark.parametrize("package", FACES)
def test_every_public_name_can_be_imported(package):
    face = importlib.import_module(package)
    assert {name for name in face.__all__ if not hasattr(face, name)} == set()
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        face.__getattr__("nonsense")

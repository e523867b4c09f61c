"""The public names of a package are the same for Python, which imports them when used, and for type checkers."""

import ast
import importlib
from pathlib import Path

import pytest

FACES = ["phonedata", "phonetrain"]


@pytest.mark.parametrize("package", FACES)
def test_checkers_see_the_names_that_python_imports(package):
    face = importlib.import_module(package)
    stub = ast.parse(Path(face.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    lines = [line for line in stub.body if isinstance(line, ast.ImportFrom)]
    seen = {alias.name: line.module for line in lines for alias in line.names if alias.name == alias.asname}
    assert sorted(seen) == face.__all__ and all(line.level == 1 for line in lines)
    for name, module in seen.items():
        assert getattr(face, name) is getattr(importlib.import_module(f"{package}.{module}"), name)


@pytest.mark.parametrize("package", FACES)
def test_a_face_knows_its_names_and_no_others(package):
    face = importlib.import_module(package)
    assert set(face.__all__) <= set(dir(face))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nonsense'"):
        face.nonsense  # noqa: B018

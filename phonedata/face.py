"""The face of a package: its public names, imported when first used, so that `import phonedata` costs nothing and
packing needs no torch. One stub says the names to Python, type checkers and editors (scientific Python's SPEC 1)."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path


def attach_stub(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of the package whose `__init__.py` is `file`.

    Its names are the lines `from .module import name as name` of the `__init__.pyi` beside that.
    """
    stub = Path(file).with_suffix(".pyi").read_text(encoding="utf-8")
    modules = {name: module for module, name in re.findall(r"^from (\S+) import (\w+) as \2$", stub, re.MULTILINE)}

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name], package), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *modules}), sorted(modules)

"""Whose code a run may import: a run's directory names its model.factory, and may come from anybody.

Code runs where this user trusted exactly that code on this machine before. `fit`, whose user named it, records that,
and so does --trust-code; the records lie outside all runs, a line each: digest, then the factory for people.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from importlib.machinery import all_suffixes
from pathlib import Path

import xxhash

from phonedata.files import append_line, read_file

from ..errors import CodeNotTrusted, ConfigError


def records() -> Path:
    """The file of this user's trusted digests."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(base, "phonetrain", "trusted-code")


def digest(factory: str) -> str:
    """Of the code that `factory` is: its file and all that it imports from the file's own folder, or its package's name
    and version. Raises ConfigError where there is no such code; runs none of it.
    """
    source = factory.rpartition(":")[0]
    if source.endswith(".py"):
        folder, found = Path(source).parent, [Path(source)]
    else:
        top = source.partition(".")[0]
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            spec = None
        places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        origin = next((Path(place) for place in places if place and Path(place).exists()), None)
        if origin is None:
            raise ConfigError(f"model.factory = {factory}: no module {top} is found here")
        if (package := installed(top, origin)) is not None:
            return package
        folder = origin.parent.parent if origin.name == "__init__.py" else origin.parent
        found = list(modules(folder, source.split(".")))
    whole = xxhash.xxh3_128()
    try:
        names = {path: Path(os.path.relpath(path, folder)).as_posix() for path in closure(found, folder)}
        if source.endswith(".py"):
            names[Path(source)] = ""  # renamed it is the same code; its neighbours are imported by their names
        for path in sorted(names, key=names.__getitem__):
            content = read_file(path)
            whole.update(f"{names[path]} {len(content)}\n".encode() + content)
    except FileNotFoundError as error:
        raise ConfigError(f"model.factory = {factory}: no such file: {error.filename}") from None
    return whole.hexdigest()


def installed(top: str, origin: Path) -> str | None:
    """Name and version of the installed package that holds the module `top`; None for code in a folder of its own."""
    for name in importlib.metadata.packages_distributions().get(top, ()):
        package = importlib.metadata.distribution(name)
        if origin.is_relative_to(str(package.locate_file(""))):
            return f"{name}=={package.version}"
    return None


def closure(files: list[Path], folder: Path) -> set[Path]:
    """These files and every one that they import from `folder`, directly or through each other."""
    seen: set[Path] = set()
    waiting = list(files)
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += imported(path, folder)
    return seen


def imported(path: Path, folder: Path) -> Iterator[Path]:
    """The files of `folder` that a Python file imports anywhere in it."""
    if path.suffix != ".py":
        return
    try:
        tree = ast.parse(read_file(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # nothing in it can run
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from modules(folder, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            above = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else folder
            names = node.module.split(".") if node.module else []
            yield from modules(above, names)
            for alias in node.names:
                yield from modules(above, [*names, alias.name])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            # importlib.import_module("net") and __import__("net")
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield from modules(folder, node.args[0].value.strip(".").split("."))


def modules(folder: Path, names: list[str]) -> Iterator[Path]:
    """The files in `folder` that importing the module a.b.c would run; `*` stands for all in a package."""
    for name in names:
        stems = [folder / name, folder / name / "__init__"] if name != "*" else []
        for path in (stem.with_name(stem.name + suffix) for stem in stems for suffix in all_suffixes()):
            if path.is_file():
                yield path
        if name == "*" and folder.is_dir():
            yield from (path for path in folder.iterdir() if path.name.endswith(tuple(all_suffixes())))
        folder = folder / name


unrecorded: set[str] = set()  # trusted by this process alone, as the file could not be written


def trust(factory: str | None) -> str | None:
    """Record that this user trusts the code of `factory`; returns a sentence where that could not be written."""
    if factory is None:
        return None
    found, path = digest(factory), records()
    if found in trusted():
        return None
    try:
        append_line(path, f"{found} {factory}".encode("utf-8", "replace"), sync=True)
    except OSError as error:
        unrecorded.add(found)
        return f"{path}: could not be written ({error.strerror}), so later commands ask for --trust-code again"
    return None


def trusted() -> set[str]:
    """The digests that this user trusts."""
    lines: list[bytes] = []
    with contextlib.suppress(OSError):
        lines = read_file(records()).splitlines()
    return unrecorded | {line.split(b" ", 1)[0].decode("ascii", "replace") for line in lines}


def check_trusted(factory: str | None, run: Path, trust_code: bool) -> str | None:
    """Raise CodeNotTrusted unless this user trusts the code of `factory` or says so now; returns what `trust` does."""
    if factory is None:
        return None
    if trust_code:
        return trust(factory)
    if digest(factory) not in trusted():
        raise CodeNotTrusted(
            f"{run}: its model is built by code that you have not trusted on this machine, {factory}; read it, then "
            "add --trust-code, in Python trust_code=True, to `phonetrain evaluate`: other commands then run it too"
        )
    return None

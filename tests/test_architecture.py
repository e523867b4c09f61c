"""The README's tree is the map: it lists every file, and a file imports only what stands above it there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = ("phonedata", "phonetrain", "benchmarks", "tools")
# A function may open the kind of thing it belongs to; at import time the arrows still point one way.
DOORS = {
    ("phonedata/corpus.py", "phonedata/verify.py"),
    ("phonetrain/console.py", "phonetrain/panel.py"),
    ("phonetrain/console.py", "phonetrain/notebook.py"),
    ("phonetrain/fused.py", "phonetrain/gpu_layer.py"),
}


def readme_tree() -> list[str]:
    """Python files of the code block under "The tree", in its order, as paths from the root."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## The tree.*?```\n(.*?)```", text, re.DOTALL)[1]
    paths, folders = [], []
    for line in block.splitlines():
        match = re.match(r"( *)(\S+)", line)
        if match is None:
            continue
        depth, name = len(match[1]) // 2, match[2]
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        elif name.endswith(".py"):
            paths.append("/".join([*folders, name]))
    return paths


def python_files() -> list[str]:
    files = [path for folder in MAPPED for path in (ROOT / folder).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in files)


def imports(path: str) -> set[str]:
    """Files of this repository that a file imports anywhere, type checking excepted, as paths from the root."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    typing_only = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in
                   ast.dump(node.test) for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = Path(path).parts[: -node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            file = ROOT.joinpath(*name.split("."))
            if file.with_suffix(".py").is_file():
                found.add(str(file.with_suffix(".py").relative_to(ROOT)))
            elif (file / "__init__.py").is_file():
                found.add(str((file / "__init__.py").relative_to(ROOT)))
    return found - {path}


def test_readme_tree_lists_every_file_once():
    assert sorted(readme_tree()) == python_files()


@pytest.mark.parametrize("path", [path for path in python_files() if not path.endswith("__init__.py")])
def test_file_imports_only_what_stands_above_it_in_the_tree(path):
    floors = {name: floor for floor, name in enumerate(readme_tree())}
    faces = {"phonedata/__init__.py", "phonetrain/__init__.py"}
    upward = {name for name in imports(path) - faces if floors[name] > floors[path]}
    assert {(path, name) for name in upward} <= DOORS


@pytest.mark.parametrize("path", [path for path in python_files() if path.startswith("phonetrain/")])
def test_phonetrain_uses_only_the_face_of_phonedata(path):
    assert {name for name in imports(path) if name.startswith("phonedata/")} <= {"phonedata/__init__.py"}


@pytest.mark.parametrize("path", [path for path in python_files() if path.startswith("phonedata/")])
def test_phonedata_never_imports_phonetrain(path):
    assert not any(name.startswith("phonetrain/") for name in imports(path))


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        (["-m", "phonedata", "--help"], ("torch", "numba", "zarr", "wandb")),
        (["-m", "phonetrain", "--help"], ("torch", "numba", "zarr", "wandb")),
        (["-c", "import phonedata, phonetrain"], ("torch", "numba", "zarr", "wandb", "numpy")),
    ],
)
def test_start_up_imports_nothing_heavy(command, unwanted):
    told = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stderr
    imported = {line.rsplit("|", 1)[1].strip() for line in told.stderr.splitlines() if line.startswith("import time:")}
    assert not imported & set(unwanted)


def test_packing_runs_without_torch(tiny_raw, tmp_path):
    packed = str(tmp_path / "packed")
    code = ("import sys; sys.modules['torch'] = None\n"
            "from phonedata.cli import main\n"
            f"raw, packed = {str(tiny_raw)!r}, {packed!r}\n"
            "for words in (['pack', raw, packed], ['verify', packed], ['inspect', packed]):\n"
            "    try: main(words)\n"
            "    except SystemExit as end: assert not end.code, (words, end.code)\n"
            "print('all three ran')")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert told.stdout.endswith("all three ran\n"), told.stderr

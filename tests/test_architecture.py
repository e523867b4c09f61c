"""Layers of folders point down, nothing imports itself through others, and starting costs nothing."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folders and the files beside them, from the ground up: what stands in a line may use the lines above it and, without
# circles, its own. A name without .py is a folder.
LAYERS = {
    "phonedata": """
        errors.py face.py
        cmvn.py system.py progress.py phonemes.py files.py
        raw format
        packing loaders
        cli.py __main__.py
    """,
    "phonetrain": """
        errors.py text.py kernels
        config console distributed.py
        device.py model optim runs
        display
        step
        checkpoints
        training
        results
        reports
        planning
        cli __main__.py
    """,
}


def mapped_files() -> list[str]:
    """Python files that docs/CODE.md lists, in its order, as paths from the root."""
    text = (ROOT / "docs/CODE.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\S+)/\n\n```\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    return [f"{folder}/{line.split()[0]}" for folder, lines in sections for line in lines.splitlines()]


def test_the_map_of_the_code_lists_every_file_once():
    assert sorted(mapped_files()) == python_files("phonedata", "phonetrain", "benchmarks", "tools")


@pytest.mark.parametrize("start", sorted(ROOT.glob("phone*/*/__init__.py")), ids=lambda path: path.parent.name)
def test_a_folder_says_what_lies_in_it(start):
    named = set(re.findall(r"\w+\.py", start.read_text(encoding="utf-8")))
    assert {file.name for file in start.parent.glob("*.py")} - {"__init__.py"} == named


def python_files(*folders: str) -> list[str]:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in files)


def imports(path: str) -> set[str]:
    """Files of this repository that a file imports anywhere, for type checkers alone too, as paths from the root."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
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


def room(path: str) -> str:
    """What of LAYERS a file belongs to: the folder or file just below its package."""
    return Path(path).parts[1]


def floors(package: str) -> dict[str, int]:
    lines = LAYERS[package].split("\n")
    return {name: floor for floor, line in enumerate(lines) for name in line.split()}


def is_face(path: str) -> bool:
    return path in ("phonedata/__init__.py", "phonetrain/__init__.py")


@pytest.mark.parametrize("package", LAYERS)
def test_layers_name_every_folder_and_file_of_a_package(package):
    assert sorted(floors(package)) == sorted({room(path) for path in python_files(package) if not is_face(path)})


@pytest.mark.parametrize("path", [path for path in python_files(*LAYERS) if not is_face(path)])
def test_imports_point_down_the_layers(path):
    package = Path(path).parts[0]
    floor = floors(package)
    own = {name for name in imports(path) if name.startswith(f"{package}/") and not is_face(name)}
    assert {name for name in own if floor[room(name)] > floor[room(path)]} == set()


def test_no_file_or_folder_imports_itself_through_others():
    files = [path for path in python_files("phonedata", "phonetrain", "benchmarks", "tools") if not is_face(path)]
    of_files = {path: {name for name in imports(path) if not is_face(name)} for path in files}
    of_folders: dict[str, set[str]] = {}
    for path, used in of_files.items():
        folder = str(Path(path).parent)
        # The files beside a package's folders are rooms of their own.
        folder = path if folder in LAYERS else folder
        others = {name if str(Path(name).parent) in LAYERS else str(Path(name).parent) for name in used}
        of_folders.setdefault(folder, set()).update(others - {folder})
    for graph in (of_files, of_folders):
        TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", python_files("phonetrain"))
def test_phonetrain_uses_only_the_face_of_phonedata_and_its_public_modules(path):
    public = {"phonedata/__init__.py", "phonedata/face.py", "phonedata/files.py"}
    assert {name for name in imports(path) if name.startswith("phonedata/")} <= public


@pytest.mark.parametrize("path", python_files("phonedata"))
def test_phonedata_never_imports_phonetrain(path):
    assert not any(name.startswith("phonetrain/") for name in imports(path))


@pytest.mark.parametrize("path", [path for path in python_files(*LAYERS) if path != "phonedata/files.py"])
def test_nothing_takes_a_disk_that_fails_for_a_file_that_is_not_there(path):
    """What these of the library answer where a call fails; phonedata/files.py has one of each that raises.

    os.path.isdir and the like say no, os.walk and glob leave folders out, rmtree(ignore_errors=True) may raise.
    """
    bad = re.compile(r"os\.path\.(exists|isfile|isdir)\(|os\.walk\(|\.r?glob\(|rmtree\(.*ignore_errors")
    assert not bad.findall((ROOT / path).read_text(encoding="utf-8"))


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
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from phonedata.cli import main\n"
        f"raw, packed = {str(tiny_raw)!r}, {packed!r}\n"
        "for words in (['pack', raw, packed], ['verify', packed], ['inspect', packed]):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert not end.code, (words, end.code)\n"
        "print('all three ran')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert told.stdout.endswith("all three ran\n"), told.stderr

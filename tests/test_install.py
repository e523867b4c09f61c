"""The package installs on Kaggle's and Colab's images and changes nothing there; the wheel is pure and whole."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES = sorted((ROOT / "tests" / "images").glob("*.txt"))


def pins(image: Path) -> dict[str, Version]:
    lines = [line for line in image.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {name: Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_ranges_admit_what_the_image_has(image):
    present = pins(image)
    assert {"numpy", "numba", "torch", "triton", "wandb", "rich"} <= set(present)
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    wanted = [Requirement(text) for text in PROJECT["dependencies"] + extras]
    refused = {str(each) for each in wanted if each.name in present and present[each.name] not in each.specifier}
    assert refused == set()
    assert {"numpy", "numba", "torch"} <= {each.name for each in wanted}
    version = re.search(r"Python (3\.\d+)", image.read_text(encoding="utf-8"))[1]
    assert version in SpecifierSet(PROJECT["requires-python"])
    assert f"{image.stem}_VERSION := {version}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_there_is_a_list_for_either_image():
    assert [path.stem for path in IMAGES] == ["colab", "kaggle"]


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="builds without network by setuptools here")
def test_wheel_is_pure_and_holds_recipes(tmp_path):
    for name in ("phonedata", "phonetrain", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(tmp_path / "source")]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--target", str(site), str(wheel)], check=True)
    recipes = {path.name for path in (site / "phonetrain" / "recipes").iterdir()}
    assert recipes == {path.name for path in (ROOT / "phonetrain" / "recipes").glob("*.toml")} > {"default.toml"}
    typed = {f"{package}/{name}" for package in ("phonedata", "phonetrain") for name in ("py.typed", "__init__.pyi")}
    assert {name for name in typed if not (site / name).exists()} == set()

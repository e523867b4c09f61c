"""docs/hw1p2.ipynb runs from an empty folder, from the installation to the CSV."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": "."}}).execute()
"""


@pytest.mark.long
def test_notebook_runs_from_install_to_submission(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    venv, folder = tmp_path / "venv", tmp_path / "empty"
    folder.mkdir()
    # The packages of this Python are there, as on Colab and Kaggle, and what the notebook installs stays in the venv.
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(venv)], check=True)
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "present.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PHONES": str(ROOT), "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    command = [str(venv / "bin" / "python"), "-c", EXECUTE, str(ROOT / "docs" / "hw1p2.ipynb")]
    subprocess.run(command, cwd=folder, env=environment, check=True, timeout=1800)
    lines = (folder / "runs" / "first" / "predictions" / "test-clean.csv").read_text().splitlines()
    assert lines[0] == "id,label" and lines[-1].startswith(f"{len(lines) - 2},") and len(lines) > 1000

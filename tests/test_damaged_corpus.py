"""Damage of any kind ends in one sentence that names a file: `verify`, `inspect`, the loaders, training."""

import subprocess
import sys

import pytest


def try_mutations(corpus, scratch, first, count):
    command = [sys.executable, "-m", "tests.damage", str(corpus.path), str(scratch), str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-6000:]}\nlast: {done.stderr[-500:]}"


def test_fifty_mutations(tiny_corpus, tmp_path):
    try_mutations(tiny_corpus, tmp_path, 0, 50)


@pytest.mark.long
@pytest.mark.parametrize("thousand", range(1, 11))
def test_ten_thousand_mutations(tiny_corpus, tmp_path, thousand):
    try_mutations(tiny_corpus, tmp_path, 1000 * thousand, 1000)

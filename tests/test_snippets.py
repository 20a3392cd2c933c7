"""Type hints admit what the pages write: mypy over every Python snippet of the README and of docs/."""

import re
import subprocess
import sys

import pytest
from shell import ROOT
from test_docs import PAGES, blocks

# What the pages take for given; `test_docs.test_python_blocks_run` gives them values of these types.
PREAMBLE = """\
from typing import Any as _Any
from torch import Tensor as _Tensor, nn as _nn
from torch.utils.data import DataLoader as _DataLoader
my_network: _nn.Module
images: _Tensor
labels: _Tensor
my_loader: _DataLoader[_Any]
my_train_loader: _DataLoader[_Any]
my_val_loader: _DataLoader[_Any]
my_test_loader: _DataLoader[_Any]
"""
# Bodies of functions without hints are checked too, and pages need not write any. What is not installed is not known.
OPTIONS = ["--check-untyped-defs", "--ignore-missing-imports", "--no-error-summary", "--hide-error-context"]


def write_snippets(pages, folder):
    """A module for each snippet: under the name that its first line gives, or that of its page.

    Returns:
        The page of each file, by its path in the folder.
    """
    found = {}
    for page in pages:
        snippets = [body for kind, body in blocks(page) if kind == "python"]
        for number, body in enumerate(snippets):
            named = re.match(r"# (\S+/\S+\.py)\n", body)
            path = folder / (named[1] if named else f"snippets/{page.stem}_{number}.py")
            assert not path.exists(), f"two pages have a file {path.name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(body if named else PREAMBLE + body)
            found[str(path.relative_to(folder))] = page
    return found


def complaints(folder, files):
    """What mypy says of some files of a folder, line by line."""
    environment = {"MYPYPATH": f"{folder}:{ROOT}", "PATH": "", "COLUMNS": "200"}
    command = [
        sys.executable,
        "-m",
        "mypy",
        *OPTIONS,
        "--config-file",
        "",
        "--cache-dir",
        str(folder / "cache"),
        *files,
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if line.partition(":")[0] in files]


@pytest.mark.slow
def test_mypy_accepts_every_python_snippet(tmp_path):
    files = write_snippets(PAGES, tmp_path)
    assert {page.name for page in files.values()} >= {"README.md", "extending.md", "export.md", "evaluate.md"}
    wrong = tmp_path / "snippets/wrong.py"
    wrong.write_text(PREAMBLE + 'from wdro_train.attacks import WPGD\nWPGD(p=2, norm="inf", delta=[0.1])\n')
    found = complaints(tmp_path, [*files, "snippets/wrong.py"])
    of_wrong = [line for line in found if line.startswith("snippets/wrong.py")]
    assert len(of_wrong) == 1, "a wrong argument has to be noticed"
    assert 'Argument "delta" to "WPGD"' in of_wrong[0]
    assert [line for line in found if line not in of_wrong] == []

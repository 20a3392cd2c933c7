"""README.md: its length, its figures, its picture, its links, and its lines of Python."""

import csv
import re

import matplotlib.image
import torch
from shell import ROOT, fitted, loader

PAGE = (ROOT / "README.md").read_text()


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def results():
    with (ROOT / "docs/results/fashion_linf/table.csv").open() as file:
        return {row["training"]: row for row in csv.DictReader(file)}


def test_length():
    assert len(PAGE.splitlines()) <= 160


def test_table_is_the_committed_results():
    (table,) = re.findall(r"^\| training, .*\n\|-.*\n(?:\|.*\n)+", PAGE, re.MULTILINE)
    header, _, *lines = table.splitlines()
    columns = [name.replace("∞", "inf") for name in cells(header)[1:]]
    assert len(lines) > 4
    for name, *values in map(cells, lines):
        code = re.findall(r"`(\w+)`", name) or ["pgd_at-radius{}-lr0.002-warmup".format(*re.findall(r"[\d.]+", name))]
        assert values == [results()[code[0]][column] for column in columns], name


def test_more_effort_is_the_committed_results():
    """The figures of the longer attack, in the order in which the sentence names the methods."""
    (sentence,) = re.findall(r"W_2 0\.1 falls to (.+?)\. Passes", PAGE, re.DOTALL)
    methods = ("worst_case", "pgd_at-radius0.3-lr0.002-warmup", "pgd_at")
    found = re.findall(r"[\d.]+ ± [\d.]+", sentence.replace("\n", " "))
    assert found == [results()[method]["W_2 0.1, more effort"] for method in methods]


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(((?!http)[^)#]+)", PAGE)
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).exists(), target


def test_picture():
    """It is there, wide enough for a screen of high resolution and small enough for a README."""
    (path,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE)
    assert (ROOT / path).stat().st_size < 250_000
    assert matplotlib.image.imread(ROOT / path).shape[1] == 1800


def test_python(capsys):
    """The lines run as they stand, on names that the text explains; fewer epochs than they ask for."""
    (code,) = re.findall(r"^```python\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert code.count("max_epochs=10") == 1
    torch.manual_seed(0)
    loaders = {"train_loader": loader(96, 32), "val_loader": loader(64, 32, 300), "test_loader": loader(64, 32, 400)}
    exec(code.replace("max_epochs=10", "max_epochs=1, logger=False"), {"network": fitted(), **loaders})
    clean, pointwise, distributional = map(float, capsys.readouterr().out.split()[-3:])
    assert clean > pointwise >= distributional

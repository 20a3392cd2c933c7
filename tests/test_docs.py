"""The pages of docs/ do what they say: their files are written, and their commands run, in an empty folder."""

import csv
import re
import shlex
from pathlib import Path

import matplotlib.image
import pytest
from shell import ROOT, digits, run

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return FENCE.findall((ROOT / "docs" / page).read_text())


def commands(page):
    """Every command line, continued lines joined."""
    text = "".join(body for kind, body in blocks(page) if kind == "bash").replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def write_files(page, folder):
    """Python and YAML blocks whose first line names a file."""
    for kind, body in blocks(page):
        if kind in ("python", "yaml") and (named := re.match(r"# (\S+/\S+)\n", body)):
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body)
            assert len(body.splitlines()) < 30, f"{named[1]} is longer than the page promises"


def write_images(folder):
    """Digits as a folder of pictures."""
    x, y = digits(400)
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        path = folder / ("test" if number >= 300 else "train") / str(label.item()) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(path, image[0].numpy(), cmap="gray", vmin=0, vmax=1)


@pytest.mark.parametrize("page", ["extending.md", "tutorial.md"])
def test_page(page, tmp_path):
    write_files(page, tmp_path)
    write_images(tmp_path / "images")
    lines = commands(page)
    assert len(lines) >= 5
    for program, script, *arguments in lines:
        assert program == "python"
        done = run(script, *arguments, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"
        assert Path(script).stem in ("train", "evaluate")


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def figures():
    """Every row of the README's tables of the study, with the results it has to come from."""
    source = {"AutoAttack 0.1": "fashion_linf", "W_2 1": "fashion_l2", "W_2 0.1": "digits_resnet18"}
    page = (ROOT / "README.md").read_text()
    for table in re.findall(r"^\| training, .*\n\|-.*\n(?:\|.*\n)+", page, re.MULTILINE):
        header, _, *lines = table.splitlines()
        columns = [name.replace("∞", "inf") for name in cells(header)[1:]]
        folder = next(folder for column, folder in source.items() if column in columns)
        for line in lines:
            yield folder, columns, cells(line)


def test_study_tables_are_the_committed_results():
    found = list(figures())
    assert {folder for folder, *_ in found} == {"fashion_linf", "fashion_l2", "digits_resnet18"}
    for folder, columns, (name, *values) in found:
        with (ROOT / "docs/results" / folder / "table.csv").open() as file:
            rows = {row["training"]: [row[column] for column in columns] for row in csv.DictReader(file)}
        assert values in rows.values(), f"{name}: no row of docs/results/{folder}/table.csv"
        for code in re.findall(r"`(\w+)`", name):
            assert rows[code] == values, f"{name} has another row's figures"

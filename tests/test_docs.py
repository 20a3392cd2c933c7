"""The pages of docs/ do what they say: their files are written, and their commands run, in an empty folder."""

import re
import shlex
import subprocess
from pathlib import Path

import matplotlib.image
import pytest
from shell import ROOT, command, digits

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
        call = command(script, *arguments, cwd=tmp_path)
        call["env"] = call["env"] | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(**call, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"
        assert Path(script).stem in ("train", "evaluate")


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

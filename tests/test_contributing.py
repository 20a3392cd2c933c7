"""What CONTRIBUTING.md and CHANGELOG.md say of the code is so: paths, names, and the one version."""

import ast
import re
from pathlib import Path

import pytest
import yaml
from packaging.version import Version
from shell import ROOT
from test_architecture import FLOORS

import wdro_train


def table(page, header):
    """The rows of every table with this header line, cell by cell."""
    for body in re.findall(rf"^{re.escape(header)}\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / page).read_text(), re.MULTILINE):
        for line in body.splitlines():
            yield [cell.strip() for cell in line.strip("|").split("|")]


def codes(cell):
    return re.findall(r"`([^`]+)`", cell)


def defined(path):
    """Names that a module defines itself at its top level, and the methods of its classes as Class.method."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef))


def find(dotted):
    """The file of a module below `wdro_train`, or its folder."""
    path = ROOT / "wdro_train" / dotted.replace(".", "/")
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path


PLACES = list(table("CONTRIBUTING.md", "| what | file | name |"))
MODULES = [(codes(old)[0], codes(new)) for old, new in table("CHANGELOG.md", "| old | new |")]
MOVED = [pair for pair in MODULES if not re.search(r"[A-Z ]", pair[0] + pair[1][0])]


def test_the_tables_are_read():
    assert len(PLACES) > 10
    assert len(MOVED) > 50


def test_layers():
    """In the order of the imports, as the test of the layout has them."""
    assert [tuple(codes(rooms)) for rooms, _ in table("CONTRIBUTING.md", "| layer | holds |")] == list(FLOORS)


@pytest.mark.parametrize(("file", "names"), [(codes(file), codes(names)) for _, file, names in PLACES], ids=str)
def test_place(file, names):
    (path,) = file
    assert names
    assert set(names) <= set(defined(ROOT / path))


@pytest.mark.parametrize(("old", "new"), MOVED, ids=[old for old, _ in MOVED])
def test_moved(old, new):
    """The new place exists; the old one is gone, unless a folder has taken over its name."""
    for dotted in new:
        parent, _, name = dotted.rpartition(".")
        is_name = find(parent).suffix == ".py" and name in defined(find(parent))
        assert find(dotted).exists() or is_name, f"{dotted} is no module and no name"
    assert not (ROOT / "wdro_train" / f"{old.replace('.', '/')}.py").exists()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_paths_exist(page):
    """Everything that is written like a path of the repository is one."""
    text = (ROOT / page).read_text()
    roots = ("conf/", "docs/", "tests/", "wdro_train/", ".ci/")
    named = {code for code in codes(text) if code.startswith(roots) and not re.search(r"[<*{ ]", code)}
    linked = {target for target in re.findall(r"\]\(([^)#]+)", text) if not target.startswith("http")}
    for path in named | linked:
        assert (ROOT / path).exists(), f"{page} names {path}"


def test_one_version():
    """The package states the version, its metadata is read from there, and the citation is of the newest release.

    An installed package keeps the metadata of the day on which it was installed, so that is not compared.
    """
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project
    (source,) = re.findall(r'\[tool\.hatch\.version\]\npath = "(.+)"', project)
    written = re.findall(r'^__version__ = "(.+)"$', (ROOT / source).read_text(), re.MULTILINE)
    assert written == [wdro_train.__version__]
    released = re.findall(r"^## \[(\d.*)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], str(citation["date-released"])) == released[0]
    present, newest = Version(wdro_train.__version__), Version(released[0][0])
    assert present == newest or (present > newest and present.is_devrelease)


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_forms(form: Path):
    """A form has what GitHub asks for: a name, a description, and fields with labels and ids of their own."""
    content = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert isinstance(content["blank_issues_enabled"], bool)
        return
    assert content["name"]
    assert content["description"]
    fields = [part for part in content["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in fields}) == len(fields) > 2
    for part in fields:
        assert part["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert part["attributes"]["label"]
        assert part["type"] != "dropdown" or len(part["attributes"]["options"]) > 1

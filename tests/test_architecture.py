"""The layout of the repository is its architecture: which folders there are, which way imports go, how long files are.

Every rule is a small function over file names or over a mapping from the path of a module inside `wdro_train` to its
source. It is applied to the package, and to a made-up tree that breaks the rule, which it must report.
"""

import ast
import graphlib
import statistics
import subprocess
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "wdro_train"

# Top first. A floor imports only from floors below it; rooms that share a floor do not import each other.
FLOORS = (
    ("tools",),
    ("cli",),
    ("evaluation",),
    ("training",),
    ("config",),
    ("objectives",),
    ("certificates", "metrics"),
    ("attacks",),
    ("models", "data"),
    ("theory",),
    ("utils",),
)
ROOMS = {room for floor in FLOORS for room in floor}
BESIDE_ROOMS = {"__init__.py", "py.typed", "__pycache__"}
TOP_LEVEL = {"conf", PACKAGE, "tests", "docs", "train.py", "evaluate.py", "pyproject.toml", "mkdocs.yml"} | {
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
}
LONGEST = 300
MEDIAN = 130


@pytest.fixture(scope="module")
def sources():
    folder = ROOT / PACKAGE
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*.py")}


def test_every_import_goes_down(sources):
    assert set(upward(sources)) == set()


def test_no_folder_has_a_circle_of_imports(sources):
    assert set(circles(sources)) == set()


def test_every_module_is_short(sources):
    assert set(too_long(sources)) == set()
    assert median_length(sources) < MEDIAN


def test_the_folders_of_the_package_are_the_rooms():
    assert misplaced(path.name for path in (ROOT / PACKAGE).iterdir()) == set()


def test_the_tests_lie_in_the_rooms_they_are_of():
    files = [path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests").rglob("test_*.py")]
    assert strays(files) == []
    assert namesakes(files) == []


def test_the_top_level_holds_nothing_unusual():
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout tells the project's files from those that runs have left")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert unusual(name for name in names if (ROOT / name).exists()) == set()


def arrows(sources):
    """Pairs (importing file, imported file) of a tree, wherever in a file the import stands."""
    return sorted((path, target) for path, text in sources.items() for target in imported(path, text, sources))


def imported(path, text, sources):
    """The files of the tree that a file imports: the module where a name is one, else the package it is taken from."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = _start(path, node)
            names = [f"{start}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            names = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        else:
            continue
        found |= {file for name in names if (file := _file(name, sources)) is not None}
    return found - {path}


def _start(path, node):
    """The package or module that `from ... import` names, in full."""
    if not node.level:
        return node.module or ""
    package = [PACKAGE, *PurePosixPath(path).parent.parts]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def _called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def _file(name, sources):
    """The file of the tree that a dotted name leads to; None for names of other packages."""
    top, *parts = name.split(".")
    if top != PACKAGE:
        return None
    for end in (len(parts), len(parts) - 1):
        inside = "/".join(parts[: max(end, 0)])
        for file in (f"{inside}.py", f"{inside}/__init__.py".lstrip("/")):
            if file in sources:
                return file
    return None


def upward(sources):
    """Imports that leave a room for one that is not below it; the package's own `__init__` is above all rooms."""
    height = {room: -number for number, floor in enumerate(FLOORS) for room in floor}
    for path, target in arrows(sources):
        here, there = (PurePosixPath(file).parts[0] for file in (path, target))
        if here != there and here != "__init__.py" and not height.get(there, 1) < height.get(here, -len(FLOORS)):
            yield f"{path} imports {target}"


def circles(sources):
    """One circle of each folder whose modules and folders import each other in one."""
    folders = {PurePosixPath(path).parent for path in sources} - {PurePosixPath(".")}
    imports = list(arrows(sources))
    for folder in sorted(folders):
        graph = {}
        for path, target in imports:
            if all(PurePosixPath(file).is_relative_to(folder) for file in (path, target)):
                here, there = (PurePosixPath(file).relative_to(folder).parts[0] for file in (path, target))
                graph.setdefault(here, set()).update({there} - {here})
        try:
            graphlib.TopologicalSorter({here: sorted(graph[here]) for here in sorted(graph)}).prepare()
        except graphlib.CycleError as error:
            yield f"{folder}: {' <- '.join(error.args[1])}"


def too_long(sources):
    """Modules of more than 300 lines."""
    return [path for path, text in sorted(sources.items()) if len(text.splitlines()) > LONGEST]


def median_length(sources):
    """Median number of lines of the modules, without the `__init__` files, which only list names."""
    return statistics.median(
        len(text.splitlines()) for path, text in sources.items() if not path.endswith("__init__.py")
    )


def misplaced(names):
    """Rooms that are missing from the package, and whatever else lies beside them."""
    return {*names} - BESIDE_ROOMS ^ ROOMS


def strays(files):
    """Test files that lie in no room, nor at the top, where those of the repository as a whole are."""
    return sorted(file for file in files if "/" in file and PurePosixPath(file).parts[0] not in ROOMS)


def namesakes(files):
    """Names that two test files share; pytest imports each under its name alone."""
    names = [PurePosixPath(file).name for file in files]
    return sorted({name for name in names if names.count(name) > 1})


def unusual(names):
    """Files and folders of the top level that a visitor would not look for there; dot-files are usual."""
    return {PurePosixPath(name).parts[0] for name in names if not name.startswith(".")} - TOP_LEVEL


TREE = {
    "__init__.py": "from wdro_train.training.module import RobustClassifier",
    "training/__init__.py": "",
    "training/module.py": "from wdro_train.attacks import WPGD\nimport torch",
    "attacks/__init__.py": "from wdro_train.attacks.w_pgd import WPGD",
    "attacks/w_pgd.py": "from wdro_train.attacks import base\nfrom wdro_train.theory.ball import WassersteinBall",
    "attacks/base.py": "import wdro_train.utils.errors",
    "models/__init__.py": "",
    "models/layers.py": "from ..utils import errors",
    "data/__init__.py": "",
    "theory/ball.py": "",
    "utils/errors.py": "",
}


def test_a_tree_in_order_passes():
    assert list(upward(TREE)) == list(circles(TREE)) == too_long(TREE) == []
    assert ("attacks/w_pgd.py", "attacks/base.py") in arrows(TREE)
    assert ("attacks/base.py", "utils/errors.py") in arrows(TREE)
    assert ("models/layers.py", "utils/errors.py") in arrows(TREE)
    assert ("training/module.py", "attacks/__init__.py") in arrows(TREE)


@pytest.mark.parametrize(
    "text",
    [
        "from wdro_train.training.module import RobustClassifier",
        "from wdro_train.training import module",
        "import wdro_train.training.module as m",
        "from ..training import module",
        "from ..training.module import RobustClassifier",
        "def late():\n    from wdro_train.training.module import RobustClassifier",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from wdro_train.training import module",
        "import importlib\nimportlib.import_module('wdro_train.training.module')",
    ],
)
def test_an_import_upwards_is_reported_however_it_is_written(text):
    assert list(upward(TREE | {"attacks/new.py": text})) == ["attacks/new.py imports training/module.py"]


@pytest.mark.parametrize(
    ("path", "text", "target"),
    [
        ("models/new.py", "from wdro_train import data", "data/__init__.py"),
        ("data/new.py", "import wdro_train.models.layers", "models/layers.py"),
        ("theory/new.py", "from wdro_train import RobustClassifier", "__init__.py"),
        ("unknown/new.py", "from wdro_train.utils import errors", "utils/errors.py"),
    ],
)
def test_an_import_sideways_or_of_the_whole_package_is_reported(path, text, target):
    assert list(upward(TREE | {path: text})) == [f"{path} imports {target}"]


@pytest.mark.parametrize(
    "planted",
    [
        {"attacks/base.py": "from wdro_train.attacks.w_pgd import WPGD"},
        {"attacks/base.py": "from wdro_train.attacks import WPGD"},
        {
            "attacks/fast/__init__.py": "",
            "attacks/fast/a.py": "from wdro_train.attacks import base",
            "attacks/base.py": "import wdro_train.attacks.fast.b",
            "attacks/fast/b.py": "",
        },
    ],
    ids=["two modules", "a module and its package", "a module and a folder beside it"],
)
def test_a_circle_is_reported(planted):
    (report,) = circles(TREE | planted)
    assert report.startswith("attacks: ")
    assert "base.py" in report


def test_a_circle_inside_a_folder_of_a_room_is_reported():
    planted = {"attacks/fast/a.py": "from . import b", "attacks/fast/b.py": "from . import a"}
    (report,) = circles(TREE | planted)
    assert report.startswith("attacks/fast: ")


def test_a_long_module_is_reported():
    assert too_long(TREE | {"theory/new.py": "x = 1\n" * 300}) == []
    assert too_long(TREE | {"theory/new.py": "x = 1\n" * 301}) == ["theory/new.py"]
    assert median_length({"a/__init__.py": "", "a/b.py": "x\n" * 130, "a/c.py": "x\n" * 140}) == 135


def test_an_unusual_name_at_the_top_is_reported():
    assert unusual(["README.md", ".ci/run", ".gitignore", "conf/train.yaml", "docs/index.md"]) == set()
    assert unusual(["results/table.csv", "train.py", "notes.txt"]) == {"results", "notes.txt"}


def test_a_room_too_many_or_too_few_is_reported():
    assert misplaced([*ROOMS, *BESIDE_ROOMS]) == set()
    assert misplaced([*ROOMS - {"theory"}, "helpers.py"]) == {"theory", "helpers.py"}


def test_a_stray_test_and_two_of_one_name_are_reported():
    assert strays(["test_docs.py", "theory/test_box.py", "old/test_box.py"]) == ["old/test_box.py"]
    assert namesakes(["theory/test_box.py", "old/test_box.py", "test_docs.py"]) == ["test_box.py"]

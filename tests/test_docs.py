"""The pages of docs/ and the README: commands run or are accepted, names exist, links lead somewhere."""

import ast
import contextlib
import csv
import html
import importlib
import importlib.util
import json
import re
import shlex
import shutil
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from shell import ROOT, digits, fitted, loader, run
from torch import nn

from wdro_train import RobustClassifier
from wdro_train.cli import schemas
from wdro_train.cli.arguments import comma_list
from wdro_train.cli.own_network import own_network
from wdro_train.config import slurm
from wdro_train.config.resolvers import register_resolvers
from wdro_train.utils.errors import UserError

DOCS = ROOT / "docs"
CONF = ROOT / "conf"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]
RUN = ["extending.md", "tutorial.md"]  # their commands run, the commands of the others are checked only
# On few images, where the page does not say on how many.
FEW = {"train.py": {"trainer.limit_train_batches": 3}, "evaluate.py": {"limit": 20}}
FEW["train.py"] |= {"trainer.limit_val_batches": 1, "trainer.limit_test_batches": 1, "data.eval_batch_size": 40}
FOLLOWED = [*RUN, "journeys.md"]  # the last in test_journeys.py
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def blocks(page):
    return [(kind, body) for _, kind, body in FENCE.findall(page.read_text())]


def commands(page):
    """Every command line, continued lines joined, without comments."""
    text = "".join(body for kind, body in blocks(page) if kind == "bash").replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


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
    x, y = digits(150)
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        path = folder / ("test" if number >= 120 else "train") / str(label.item()) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(path, image[0].numpy(), cmap="gray", vmin=0, vmax=1)


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_page(page, tmp_path):
    write_files(DOCS / page, tmp_path)
    write_images(tmp_path / "images")
    lines = commands(DOCS / page)
    assert len(lines) >= 5
    for program, script, *arguments in lines:
        assert program == "python"
        assert script in ("train.py", "evaluate.py", "-m")
        arguments += [f"{key}={value}" for key, value in FEW.get(script, {}).items() if f"{key}=" not in str(arguments)]
        done = run(script, *arguments, cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
        assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stderr}"


def at_the_doors():
    """Every command line of a door that is documented and does not run here."""
    for page in PAGES:
        if page.name not in FOLLOWED:
            for words in commands(page):
                words = words[1:] if words[0] == "srun" else words
                if words[0] == "python" and words[1] in ("train.py", "evaluate.py"):
                    yield words[1:2], words[2:]


@contextlib.contextmanager
def hydra_at_rest():
    """Composing leaves no trace in Hydra's singletons."""
    before = HydraConfig.instance().cfg
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        HydraConfig.instance().cfg = before
        GlobalHydra.instance().clear()


def first_job(argument):
    """Of an argument with several values the first; None for Hydra's own flags."""
    key, _, value = argument.partition("=")
    if argument.startswith("-") or value.startswith("choice("):
        return None
    return argument if value[:1] in ("[", "{") or "ckpt_path" in key else f"{key}={value.split(',')[0]}"


@pytest.mark.slow
@pytest.mark.parametrize(("door", "arguments"), at_the_doors(), ids=lambda value: shlex.join(value)[:80])
def test_documented_commands_are_accepted(door, arguments, tmp_path, monkeypatch):
    """They compose, and their values pass the check that comes before a run."""
    register_resolvers()
    monkeypatch.chdir(tmp_path)
    OmegaConf.register_new_resolver("run_folder", slurm.run_folder, replace=True)
    door = door[0].removesuffix(".py")
    overrides = [kept for argument in comma_list(arguments, "ckpt_path") if (kept := first_job(argument)) is not None]
    with hydra_at_rest():
        cfg = compose(door, own_network(overrides, door), return_hydra_config=True)
    if "trainer=ddp" not in overrides or torch.cuda.is_available():
        schemas.check(cfg, door)
        return
    with pytest.raises(UserError, match="No supported gpu backend found"):
        schemas.check(cfg, door)


def tool_commands():
    found = {tuple(words[2:]) for page in PAGES for words in commands(page) if words[:2] == ["python", "-m"]}
    return sorted(words for words in found if words[0].startswith("wdro_train."))


def test_documented_options_of_the_tools_exist(monkeypatch, capsys):
    found = tool_commands()
    names = {name for name, *_ in found}
    assert len(names) >= 5
    said = {}
    for name in names:
        monkeypatch.setattr("sys.argv", [name, "--help"])
        with pytest.raises(SystemExit) as caught:
            importlib.import_module(name).main()
        assert caught.value.code == 0
        said[name] = capsys.readouterr().out
    for name, *arguments in found:
        for option in (word for word in arguments if word.startswith("--")):
            assert option in said[name], f"{name} has no option {option}"


def linear_and_relu():
    """A network of layers that a certificate covers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10)).eval()


_ON_DEMAND = {"worst_acc", "worst_ratio", "certified_acc", "certified_ratio", "loss"}
"""What a judge with distances or a certificate logs, or every training."""


@pytest.mark.slow
def test_python_blocks_run(tmp_path, monkeypatch):
    """With a network, images and loaders under the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    images, labels = digits(40)
    row = {"models": [{"distances": {"values": [0.0, 0.1, "inf"]}}]}
    (tmp_path / "runs/report").mkdir(parents=True)
    (tmp_path / "runs/report/report.json").write_text(json.dumps(row))
    (tmp_path / "runs/first/checkpoints").mkdir(parents=True)
    shutil.copy(ROOT / "tests/reference/checkpoint_0.1.0.ckpt", tmp_path / "runs/first/checkpoints/best.ckpt")
    keys: set[str] = set()
    monkeypatch.setattr(RobustClassifier, "on_fit_end", lambda module: keys.update(module.trainer.callback_metrics))
    ran = 0
    for page in PAGES:
        for kind, body in blocks(page):
            if kind == "python" and not re.match(r"# \S+/\S+\n", body):
                certifiable = page.name == "certify.md"
                network = linear_and_relu() if certifiable else fitted()
                names = {"my_network": network, "images": images, "labels": labels}
                names |= {name: loader(40, 20) for name in ("my_loader", "my_train_loader", "my_val_loader")}
                names |= {"my_test_loader": loader(20, 20, start=400)}
                exec(compile(ast.parse(body), page.name, "exec"), names)
                ran += 1
    assert ran >= 5
    logged = {key.removeprefix("val/") for key in keys if key.startswith("val/")}
    assert logged == set(documented("keys.md", "key", "meaning", "scope")) - _ON_DEMAND


def tables(page):
    """Header and rows of each table of a page."""
    for text in re.findall(r"^\|.*\n\|[-| ]+\|\n(?:\|.*\n?)+", page.read_text(), re.MULTILINE):
        header, _, *rows = text.strip().splitlines()
        yield cells(header), [cells(row) for row in rows]


def cells(line):
    return [cell.strip().replace("\N{NO-BREAK SPACE}", " ") for cell in line.strip().strip("|").split("|")]


def documented(page, *header):
    """Names in code in the first column of the table with these headings."""
    return [
        name
        for found, rows in tables(DOCS / page)
        if tuple(found) == header
        for row in rows
        for name in re.findall(r"`([^`]+)`", row[0])
    ]


def options(group):
    return {path.stem for path in (CONF / group).glob("*.yaml")} - {"evaluate"}


def test_tables_of_options_are_the_folders():
    header = ["group", "options", "what it is"]
    rows = next(rows for found, rows in tables(DOCS / "keys.md") if found == header)
    named = {}
    for groups, values, _ in rows:
        for group in re.findall(r"`(\w+)`", groups):
            named.setdefault(group, set()).update(re.findall(r"`(\w+)`", values))
    folders = {path.name for path in CONF.iterdir() if path.is_dir()} - {"base", "hydra", "local", "protocol"}
    assert set(named) == folders
    assert named["optimizer"] == options("optimizer") | options("scheduler")
    for group in folders - {"method", "optimizer", "scheduler", "study"}:
        assert named[group] == options(group), group
    assert named["study"] == {path.stem for path in (CONF / "study").glob("*_*.yaml")}
    for page, header in (("train.md", ("`method=`", "what is trained on")),):
        assert set(documented(page, *header)) == options("method")
    assert set(documented("how_to_choose.md", "`method=`", "trained on", "order $p$", "origin")) == options("method")


def test_table_of_formulas_names_what_exists():
    """A name that begins with a dot belongs to the object before it, or stands beside it."""
    found = 0
    for header, rows in tables(DOCS / "theory.md"):
        assert header == ["formula", "section", "function"]
        for row in rows:
            owner = ""
            for name in re.findall(r"`([\w.]+)`", row[-1]):
                beside = owner.rpartition(".")[0]
                tried = [f"{owner}{name}", f"{beside}{name}"] if name.startswith(".") else [f"wdro_train.{name}"]
                assert any(locate(one) is not None for one in tried), name
                owner = owner if name.startswith(".") else tried[0]
                found += 1
    assert found > 35


def locate(name):
    """What a dotted name means, or None."""
    for end in range(len(parts := name.split(".")), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


def test_names_of_the_package_exist():
    """Every dotted name that a page mentions; the changelog alone may speak of the past."""
    found = {
        (page.name, name.rstrip("."))
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for name in re.findall(r"\bwdro_train(?:\.\w+)+", page.read_text())
    }
    assert len(found) > 30
    assert [(page, name) for page, name in found if locate(name) is None] == []


def test_sections_that_docstrings_cite_exist():
    sections = {int(number) for number in re.findall(r"^## (\d+)\. ", (DOCS / "theory.md").read_text(), re.MULTILINE)}
    assert sections == set(range(1, 13))
    cited = set()
    for path in (ROOT / "wdro_train").rglob("*.py"):
        for numbers in re.findall(r"theory,? sections? (\d+(?:(?:, | and )\d+)*)", path.read_text()):
            cited |= {int(number) for number in re.findall(r"\d+", numbers)}
    assert cited
    assert cited <= sections


def test_report_fields_are_explained():
    schema = json.loads((ROOT / "wdro_train/evaluation/report/schema.json").read_text())
    named = documented("report_schema.md", "field", "what it holds")
    wanted = [schema["properties"], schema["$defs"]["model"]["properties"]]
    assert set(named) == set(wanted[0]) | set(wanted[1])
    assert set(documented("report_schema.md", "field", "kind of statement")) == set(
        schema["$defs"]["curve"]["properties"]
    ) - {"p", "deltas"}


def test_every_page_is_in_the_navigation():
    def pages(node):
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [page for child in children for page in pages(child)]

    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("**/*.md"))


def anchors(page):
    """What the site calls the headings of a page."""
    text = FENCE.sub("", page.read_text())
    heads = [re.sub(r"[^\w\s-]", "", head).strip().lower() for head in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[-\s]+", "-", head) for head in heads}


def test_links_lead_somewhere():
    found = 0
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]+))?\)", text):
            found += 1
            path = (page.parent / target).resolve() if target else page
            assert path.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(path), f"{page.name} links to {target}#{anchor}"
    assert found > 80


# The results that a table of a study has to come from, by a column that no other study's has.
SOURCES = {"AutoAttack 0.1": "fashion_linf", "W_2 1": "fashion_l2", "W_2 0.1": "digits_resnet18"}
SOURCES |= {"W_2 2/255": "cifar10_linf", "W_2 8/255": "cifar10_linf_8", "W_2 0.25": "cifar10_l2"}
OF_NETWORKS = {"training, ResNet-18, radius 2/255": "gpu_cifar10_linf"}


def figures():
    """Every row of the tables of the studies, wherever they stand, with the results it has to come from."""
    for page in PAGES:
        for header, rows in tables(page):
            columns = [name.replace("∞", "inf") for name in header[1:]]
            if header[0].startswith("training, "):
                folder = OF_NETWORKS.get(header[0])
                folder = folder or next(folder for column, folder in SOURCES.items() if column in columns)
                for row in rows:
                    yield folder, columns, row


def test_study_tables_are_the_committed_results():
    found = list(figures())
    assert {folder for folder, *_ in found} == {*SOURCES.values(), *OF_NETWORKS.values()}
    assert len(found) >= 50
    for folder, columns, (name, *values) in found:
        with (DOCS / "results" / folder / "table.csv").open() as file:
            rows = {row["training"]: [row[column] for column in columns] for row in csv.DictReader(file)}
        bare = [value.strip("*") for value in values]
        assert bare in rows.values(), f"{name}: no row of docs/results/{folder}/table.csv"
        for code in re.findall(r"`(\w+)`", name):
            assert rows[code] == bare, f"{name} has another row's figures"


def site_code(name):
    """A module of the site, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "site_code" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_mathml(latex, element="span", marks=r"\(\)"):
    content = f'<{element} class="arithmatex">{marks[:2]}{latex}{marks[2:]}</{element}>'
    return site_code("formulas").on_page_content(content, page=SimpleNamespace(file=SimpleNamespace(src_uri="page.md")))


def test_formulas_are_drawn_without_scripts():
    """The site names no script of its own, and what Markdown leaves of a formula becomes MathML."""
    assert "extra_javascript" not in (ROOT / "mkdocs.yml").read_text()
    inline = in_mathml(r"1 \lbrace d_i \le \delta \rbrace")
    assert html.unescape(re.sub(r"<[^>]+>", "", inline)) == "1{di≤δ}"
    assert 'display="block"' in in_mathml(r"a &amp;= b \cr c", "div", r"\[\]")
    assert in_mathml(r"\lVert g\rVert_\ast").count('<mo stretchy="false" lspace="0" rspace="0">&#x02016;</mo>') == 2
    with pytest.raises(ValueError, match=r"page.md: \\upsilonn in"):
        in_mathml(r"\upsilonn")

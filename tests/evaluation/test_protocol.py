"""The paper's protocol as recipes, and published figures beside ours."""

import json
import math
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from datafiles import image_set, write_cifar
from hydra import compose, initialize_config_dir
from jsonschema import Draft202012Validator
from shell import command
from torchvision.datasets import CIFAR10, CIFAR100

from wdro_train.config.resolvers import register_resolvers
from wdro_train.evaluation.report.published import published
from wdro_train.models import preact_resnet18, robustbench_model
from wdro_train.utils.numbers import parse_number

ROOT = Path(__file__).parents[2]
PROTOCOLS = sorted(path.stem for path in (ROOT / "conf/protocol").glob("*.yaml"))
CHEAP = ["first_order.steps=1", "distances.steps=2", "limit=6", "pictures=0", "accelerator=cpu", "hydra.run.dir=out"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_recipes_compose(name):
    register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("evaluate", [f"protocol={name}", "model.name=Somebody2020"])
    radii = [parse_number(delta, "delta") for delta in cfg.first_order.deltas]
    assert parse_number(cfg.attack.delta, "delta") in radii
    assert [parse_number(p, "p") for p in cfg.first_order.p] == [2, math.inf]
    assert cfg.first_order.losses == ["ce", "dlr", "redlr"]
    assert cfg.model.threat == ("L2" if cfg.attack.norm == 2 else "Linf")
    assert cfg.data.num_classes in (10, 100, 1000)
    assert cfg.distances.effort == "auto"


def test_published_figures():
    rows = published("Carmon2019Unlabeled", math.inf, 8 / 255)
    assert rows == []
    both = published("Wang2023Better_WRN-28-10", math.inf, 8 / 255)
    assert [(row["p"], row["accuracy"], row["error"]) for row in both] == [(math.inf, 0.6731, 0), (2, 0.521, 0.003)]
    assert [row["accuracy"] for row in published("Wang2023Better_WRN-28-10", 2, 0.5)] == [0.8368, 0.687]
    assert published("Wang2023Better_WRN-28-10", 2, 0.25) == []
    content = json.loads((ROOT / "wdro_train/evaluation/report/published.json").read_text())["networks"]
    assert len(content) == 33
    assert all(0 < row["w_2"] < row["w_inf"] < 1 for row in content)  # the W_2 ball is the larger one


def judge(*arguments, folder, cifar=CIFAR10):
    """evaluate.py in a folder with a small CIFAR in torchvision's layout, whose checksums it is told."""
    classes, key = (10, "labels") if cifar is CIFAR10 else (100, "fine_labels")
    sizes = {"train": 10 * classes, "test": classes}
    sets = {part: image_set(n, (32, 32, 3), classes, seed=k) for k, (part, n) in enumerate(sizes.items())}
    with pytest.MonkeyPatch.context() as patch:
        write_cifar(folder / "data", cifar, sets, key, patch)
        digests = {key: getattr(cifar, key) for key in ("train_list", "test_list", "meta")}
    (folder / "sitecustomize.py").write_text(
        f"from torchvision.datasets import {cifar.__name__} as one\n"
        f"for k, v in {digests!r}.items():\n    setattr(one, k, v)\n"
    )
    what = command("evaluate.py", *arguments, *CHEAP, cwd=folder)
    what["env"]["PYTHONPATH"] = f"{folder}:{ROOT}"
    done = subprocess.run(**what, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "out/report.json").read_text())
    Draft202012Validator(json.loads((ROOT / "wdro_train/evaluation/report/schema.json").read_text())).validate(report)
    return report["models"][0], done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("robustbench") is None, reason="robustbench is not installed")
@pytest.mark.parametrize(
    ("protocol", "name", "threat", "cifar", "figures"),
    [
        ("paper_table1", "Wong2020Fast", "Linf", CIFAR10, [("inf", 0.4321), (2.0, 0.369)]),
        ("paper_table1_l2", "Rice2020Overfitting", "L2", CIFAR10, [("inf", 0.6768), (2.0, 0.569)]),
        ("paper_bounds_cifar100", "Rice2020Overfitting", "Linf", CIFAR100, []),
    ],
)
def test_recipe_as_typed(protocol, name, threat, cifar, figures, tmp_path):
    """A network by its name, with random weights in its cache layout."""
    network = robustbench_model(10 if cifar is CIFAR10 else 100, name, threat, pretrained=False)
    cache = tmp_path / "models" / cifar.__name__.lower() / threat
    cache.mkdir(parents=True)
    torch.save(network.state_dict(), cache / f"{name}.pt")
    model, printed = judge(f"protocol={protocol}", f"model.name={name}", folder=tmp_path, cifar=cifar)
    assert model["name"] == name
    assert {(row["loss"], row["p"]) for row in model["poster"]} == {
        (loss, p) for loss in ("ce", "dlr", "redlr") for p in ("inf", 2.0)
    }
    assert [(row["p"], row["accuracy"]) for row in model.get("published", [])] == figures
    assert ("published beside ours" in printed) == bool(figures)


@pytest.mark.slow
def test_published_stand_beside_ours(tmp_path):
    """The network's name is known from its file."""
    network = preact_resnet18((3, 32, 32), 10, mean=[0] * 3, std=[1] * 3, width=2)
    torch.save(network.state_dict(), tmp_path / "Rice2020Overfitting.pt")
    given = ["model=preact_resnet18", "model.width=2", "model.weights=Rice2020Overfitting.pt"]
    threat = ["data=cifar10", "attack.norm=2", "attack.delta=1/2", "poster.p=[2,inf]", "poster.losses=[redlr]"]
    model, printed = judge(*given, *threat, folder=tmp_path)
    assert [(row["p"], row["accuracy"]) for row in model["published"]] == [("inf", 0.6768), (2.0, 0.569)]
    table = printed[printed.index("published beside ours") :]
    ours = next(row["pgd_acc"] for row in model["poster"] if (row["p"], row["delta"]) == (2.0, 0.5))
    assert f"{ours:.4f}" in next(line for line in table.splitlines() if "W_2" in line)

"""README.md: its length, its picture, and a figure in its text. `test_docs.py` has the links, tables and code."""

import csv
import importlib.util
import math
import re
import sys

import matplotlib.image
import pytest
from shell import ROOT, fitted, loader
from test_docs import blocks

from wdro_train.training.adversary.attacker import Attacker

PAGE = (ROOT / "README.md").read_text()
PICTURE = ROOT / "docs/images/pointwise_and_distributional.png"


def test_length():
    assert len(PAGE.splitlines()) <= 160


def test_more_effort_is_the_committed_results():
    """The figures of the longer attack, in the order in which the sentence names the methods."""
    with (ROOT / "docs/results/fashion_linf/table.csv").open() as file:
        results = {row["training"]: row["W_2 0.1, more effort"] for row in csv.DictReader(file)}
    (sentence,) = re.findall(r"W_2 0\.1 falls to (.+?)\. Passes", PAGE, re.DOTALL)
    found = re.findall(r"[\d.]+ ± [\d.]+", sentence.replace("\n", " "))
    assert found == [results[name] for name in ("worst_case", "pgd_at-radius0.3-lr0.002-warmup", "pgd_at")]


def test_picture():
    """It is shown, wide enough for a screen of high resolution and small enough for a README."""
    assert str(PICTURE.relative_to(ROOT)) in PAGE
    assert PICTURE.stat().st_size < 250_000
    assert matplotlib.image.imread(PICTURE).shape[1] == 1800


@pytest.mark.slow
def test_its_training_has_an_adversary(tmp_path, monkeypatch):
    """Every training batch of the block in Python is attacked, and the images move."""
    monkeypatch.chdir(tmp_path)
    perturb, moved = Attacker.perturb, []

    def watched(self, model, batch):
        found = perturb(self, model, batch)
        moved.append(float(found.distances.max()))
        return found

    monkeypatch.setattr(Attacker, "perturb", watched)
    names = {"my_network": fitted(), "my_train_loader": loader(40, 20), "my_val_loader": loader(40, 20)}
    (block,) = [body for kind, body in blocks(ROOT / "README.md") if kind == "python"]
    exec(block, names | {"my_test_loader": loader(20, 20, start=400)})
    assert len(moved) == 10 * 2  # epochs, and batches of each
    assert min(moved) > 0


@pytest.mark.slow
def test_picture_is_what_its_script_draws(tmp_path):
    """It runs, spares whom the text says it spares, and its accuracies are those of the text but for rounding."""
    spec = importlib.util.spec_from_file_location("picture", PICTURE.with_suffix(".py"))
    picture = sys.modules["picture"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    scene = picture.measure()
    moved = scene.distributional.moved
    assert scene.distances[0] == moved[0] == moved[-1] == 0
    assert (moved[1:-1] > 0).all()
    assert (scene.pointwise.moved > 0.09).all()
    accuracies = [100 * scene.curve.accuracy(picture.DELTA, p) for p in (math.inf, 2)]
    told = [float(text) for text in re.findall(r"([\d.]+) %", PAGE)[:4]]
    assert told[:2] == told[2:] == pytest.approx(accuracies, abs=0.3)
    picture.draw(scene).savefig(tmp_path / "picture.png")
    assert matplotlib.image.imread(tmp_path / "picture.png").shape == matplotlib.image.imread(PICTURE).shape

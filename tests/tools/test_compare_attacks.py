"""What the side-by-side table says is counted and re-measured, and MinimalDistance leads it."""

import math
import sys

import numpy as np
import pytest
import torch
from oracles import reference_images, reference_network
from shell import run
from torch import nn

from wdro_train.evaluation.autoattack import require
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import compare_attacks
from wdro_train.tools.compare_attacks import compare, measure, other_attacks, rows
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

INF = math.inf
RADIUS = {("adversarial", INF): 0.1, ("adversarial", 2): 1.0, ("standard", INF): 0.02, ("standard", 2): 0.2}


def test_passes_are_counted():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = torch.rand(5, 1, 2, 2)
    with PassCounter(model) as passes:
        model(x)
        leaf = x.clone().requires_grad_()
        logits = model(2 * leaf)
        torch.autograd.grad(logits[:, 0].sum(), leaf, retain_graph=True)
        torch.autograd.grad(logits[:, 1].sum(), leaf)
    model(x)
    assert (passes.forward, passes.backward) == (10, 10)


@pytest.mark.parametrize(
    ("attack", "found"),
    [
        (lambda x: x, INF),  # flips nothing
        (lambda x: 2 - x, INF),  # leaves the box
        (lambda x: 1 - x, 1.0),
    ],
)
def test_claims_are_checked(attack, found):
    """Class 1 where the image is brighter than a half."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, 4))
        model[1].bias.copy_(torch.tensor([2.0, 0.0]))
    x = torch.tensor([0.0, 0.0, 1.0])[:, None, None, None].expand(3, 1, 2, 2)
    y = torch.tensor([0, 1, 1])
    outcome = measure("", lambda model, x, y: attack(x), model, x, y, WassersteinBall(2, INF, 1))
    assert outcome.distances.tolist() == [found, 0, found]
    with pytest.raises(UserError, match="no image correctly"):
        measure("", lambda model, x, y: x, model, x, 1 - model(x).argmax(1), WassersteinBall(2, INF, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "s"), RADIUS)
def test_leads_its_peers_at_the_same_number_of_gradients(name, s):
    x, y = (part[:250] for part in reference_images())
    ball = WassersteinBall(2, s, RADIUS[name, s])
    first, *others = compare(reference_network(name), x, y, ball)
    assert first.backward == 32
    names = [other.name for other in others]
    assert {"FMN", "FMN, step 0.1", "DeepFool"} <= set(names)
    assert ("DDN" in names) == (s == 2)
    mine = RobustnessCurve(first.distances)
    for other in others:
        theirs = RobustnessCurve(other.distances)
        assert theirs.clean_accuracy == mine.clean_accuracy
        if other.name != "DeepFool, to its end":
            assert 20 <= other.backward <= 50
        for delta in (ball.delta / 2, ball.delta, 2 * ball.delta):
            assert mine.accuracy(delta, 2) <= theirs.accuracy(delta, 2) + 1e-9
        assert np.median(first.distances) <= np.median(other.distances)
    table = rows([first, *others], ball)
    assert table[0][0] == "MinimalDistance"
    assert float(table[0][2]) == pytest.approx(mine.accuracy(ball.delta, 2), abs=1e-4)
    assert table[0][-1] == "1.00"


def test_l1_has_its_peer_too():
    assert [name for name, _ in other_attacks(1.0, 5, 10)] == ["FMN", "FMN, step 0.1"]


@pytest.mark.parametrize("package", ["foolbox", "pyautoattack"])
def test_peers_that_are_not_installed(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed; run pip install -e '\.\[peers\]'"):
        require(package)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("benchmark")
    options = ["attack.steps=1", "trainer.max_epochs=1", "logger=none", "trainer=cpu"]
    done = run("train.py", *options, cwd=where)
    assert done.returncode == 0, done.stderr
    return where


@pytest.mark.slow
def test_command(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    outcomes = compare_attacks.main(["--norm", "2", "--delta", "0.3", "--limit", "40", "--steps", "5", "--p", "1"])
    assert all(outcome.distances.shape == (40,) for outcome in outcomes)
    printed = capsys.readouterr().out
    assert "40 test images, l_2" in printed
    for outcome in outcomes:
        assert outcome.name[:8] in printed


@pytest.mark.slow
def test_command_says_what_is_wrong(tmp_path):
    done = run("-m", "wdro_train.tools.compare_attacks", "none.ckpt", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "none.ckpt" in done.stderr
    assert "Traceback" not in done.stderr

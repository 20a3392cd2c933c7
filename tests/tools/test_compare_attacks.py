"""What the side-by-side table says is counted and re-measured, and MinimalDistance leads it."""

import importlib.util
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import short_run
from oracles import reference_images, reference_network
from shell import run
from torch import nn

from wdro_train.evaluation.autoattack import require
from wdro_train.models import small_cnn
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import compare_attacks, peer_attacks
from wdro_train.tools.attack_outcomes import Outcome, as_data, command, draw, header, rows
from wdro_train.tools.compare_attacks import compare, measure
from wdro_train.tools.peer_attacks import Task, nearest_of_another_class, peers
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
    found = compare(reference_network(name), x, y, ball, packages=("foolbox", "pyautoattack"))
    first, *others = found.outcomes
    assert first.backward == 32
    names = [other.name for other in others]
    assert {"FMN", "FMN, step 0.1", "DeepFool", "FAB, nearest rival", "APGD-CE, one radius"} <= set(names)
    assert all("Brendel-Bethge" in sentence for sentence in found.left_out)  # needs numba
    assert ("DDN" in names) == (s == 2)
    mine = RobustnessCurve(first.distances)
    for other in others:
        theirs = RobustnessCurve(other.distances)
        assert theirs.clean_accuracy == mine.clean_accuracy
        if other.name not in ("DeepFool", "Brendel-Bethge"):  # which stop early, or count in another way
            assert other.backward == 32
        assert other.backward <= 33
        for delta in (ball.delta / 2, ball.delta, 2 * ball.delta):
            assert mine.accuracy(delta, 2) <= theirs.accuracy(delta, 2) + 1e-9
        assert np.median(first.distances) <= np.median(other.distances)
    table = rows([first, *others], ball)
    assert table[0][0] == "MinimalDistance"
    assert header(ball)[2:4] == ["W_inf", "W_2"]
    assert float(table[0][2]) == pytest.approx(mine.accuracy(ball.delta, INF), abs=1e-4)
    assert float(table[0][3]) == pytest.approx(mine.accuracy(ball.delta, 2), abs=1e-4)
    assert table[0][-1] == "1.00"


def test_every_norm_has_peers():
    for norm, expected in (
        (1.0, {"FMN", "FMN, step 0.1", "Brendel-Bethge"}),
        (2.0, {"FMN", "FMN, step 0.1", "DDN", "DeepFool", "Brendel-Bethge"}),
        (INF, {"FMN", "FMN, step 0.1", "DeepFool", "Brendel-Bethge"}),
    ):
        assert {peer.name for peer in peers(norm, "foolbox")} == expected
        assert {peer.name for peer in peers(norm, "pyautoattack")} == {"APGD-CE, one radius", "FAB, nearest rival"}
    assert {"ALMA", "PDGD", "PDPGD", "SuperDeepFool"} <= {peer.name for peer in peers(2.0, "adv_lib")}


@pytest.mark.parametrize(("gradients", "classes"), [(12, 10), (32, 10), (102, 10), (302, 10), (32, 2), (500, 100)])
def test_superdeepfool_stays_within_the_gradients_where_they_are_enough(gradients, classes):
    found = peer_attacks._superdeepfool(Task(WassersteinBall(2, 2, 1), gradients, classes))
    taken = found["steps"] * (found["df_steps"] * (classes - 1) + 1)
    assert taken <= max(gradients, 2 * classes)  # two steps are the least
    assert found["steps"] >= 2


def test_starting_points_are_the_nearest_images_of_another_class():
    x = torch.tensor([0.0, 0.1, 0.4, 0.9])[:, None, None, None]
    y = torch.tensor([0, 0, 1, 1])
    assert nearest_of_another_class(x, y).flatten().tolist() == pytest.approx([0.4, 0.4, 0.1, 0.1])
    with pytest.raises(UserError, match="the same label"):
        nearest_of_another_class(x, torch.zeros(4))


BRIGHT = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))


def bright():
    """A network that tells images brighter than a half, images of both classes, and their distances in l_inf."""
    with torch.no_grad():
        BRIGHT[1].weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, 4))
        BRIGHT[1].bias.copy_(torch.tensor([2.0, 0.0]))
    shades = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.7, 0.95])
    x = shades[:, None, None, None].expand(6, 1, 2, 2).contiguous()
    return BRIGHT, x, (shades > 0.5).long(), (shades - 0.5).abs()


@pytest.mark.parametrize("package", ["foolbox", "pyautoattack", "adv_lib"])
@pytest.mark.parametrize("norm", [1.0, 2.0, INF])
def test_no_peer_goes_below_the_true_distance(package, norm):
    """On a linear network, of which the distances are known: a peer that seems to is measured wrongly."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    model, x, y, apart = bright()
    true = apart.double() * (1 if math.isinf(norm) else 4 ** (1 / norm))
    ball = WassersteinBall(2, norm, 0.3)
    found = compare(model, x, y, ball, steps=18, packages=[package])
    for outcome in found.outcomes:
        assert (outcome.distances >= true.numpy() * (1 - 1e-5)).all(), outcome.name
        assert outcome.backward <= 21, outcome.name
    assert found.outcomes[0].distances == pytest.approx(true.numpy(), rel=1e-3)
    needs_more = ("numba", "ALMA")  # a package, or three classes
    assert all(any(what in sentence for what in needs_more) for sentence in found.left_out)


def test_what_is_not_installed_or_fails_is_named_and_the_others_run(monkeypatch):
    def fails(task):
        def run(model, x, y):
            raise AssertionError("no start")

        return run

    broken = [peer_attacks.Peer("Broken", "foolbox", (INF,), fails)]
    monkeypatch.setattr(
        compare_attacks, "peers", lambda norm, package: broken if package == "foolbox" else peers(norm, package)
    )
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "adv_lib", None)
    monkeypatch.setitem(sys.modules, "adv_lib.attacks", None)
    model, x, y, _ = bright()
    found = compare(model, x, y, WassersteinBall(2, INF, 0.3), steps=2)
    assert [outcome.name for outcome in found.outcomes] == ["MinimalDistance", "W-PGD, one radius"]
    said = "\n".join(found.left_out)
    assert "Broken (foolbox) is left out, as it failed with AssertionError: no start" in said
    assert "pyautoattack is not installed; run pip install -e '.[peers]'" in said
    assert "adv_lib is not installed; run pip install --no-deps adv-lib" in said


def outcome(name, median, passes, package="wdro-train"):
    d = np.asarray([0.0, median, median, 2 * median])
    return Outcome(name, d, passes, passes, passes / 10, package)


def test_figure_and_numbers():
    ball = WassersteinBall(2, INF, 8 / 255)
    runs = {
        steps: [outcome("MinimalDistance", 1 / steps, steps), outcome("FMN", 2 / steps, steps, "adv_lib")]
        for steps in (30, 10)
    }
    figure = draw(runs, ball, "net: 4 test images, l_inf", "8/255")
    left, right = figure.axes
    assert "pixels in [0, 1]" in left.get_ylabel()
    assert "8/255" in right.get_ylabel()
    lines = dict(zip(("MinimalDistance", "FMN (adv-lib)"), left.get_lines(), strict=True))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    for name, factor in (("MinimalDistance", 1), ("FMN (adv-lib)", 2)):
        assert lines[name].get_xdata() == pytest.approx([10, 30])
        assert lines[name].get_ydata() == pytest.approx([factor / 10, factor / 30])
    data = as_data(runs, ball, {"network": "net"}, ["X is left out"])
    assert data["left_out"] == ["X is left out"]
    first, second = data["runs"][0]["attacks"]
    assert (first["median_distance"], second["gradients"]) == pytest.approx((1 / 30, 30))
    assert first["accuracy"]["W_2"] == RobustnessCurve(runs[30][0].distances).accuracy(8 / 255, 2)


@pytest.mark.parametrize("medians", [(INF, INF), (INF, 0.1), (0.0, 0.0), (0.0, 0.1)])
def test_the_figure_is_drawn_whatever_was_found(medians, tmp_path):
    """Of a robust network few steps flip fewer than half of the images, and of another all at distance 0."""
    runs = {10: [outcome(f"attack {k}", median, 10) for k, median in enumerate(medians)]}
    draw(runs, WassersteinBall(2, INF, 0.1), "net", "0.1").savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_command_names_no_folder_of_this_machine():
    here = str(Path("/a/b/net.pt"))
    assert command([here, f"model.weights={here}", "--out", "/a/b"]).split()[3:] == [
        "net.pt",
        "model.weights=net.pt",
        "--out",
        "b",
    ]
    assert command(["docs/x.ckpt", "attack.delta=8/255"]).endswith("compare_attacks docs/x.ckpt attack.delta=8/255")


@pytest.mark.parametrize("package", ["foolbox", "pyautoattack"])
def test_peers_that_are_not_installed(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed; run pip install -e '\.\[peers\]'"):
        require(package)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("benchmark")
    short_run(where, "attack.steps=1", "trainer.limit_train_batches=20", "optimizer.lr=0.03", "hydra.run.dir=runs/2/a")
    return where


@pytest.mark.slow
def test_command(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    options = ["--norm", "2", "--delta", "5/16", "--limit", "40", "--steps", "5", "--curve", "3", "--p", "1"]
    found = compare_attacks.main([*options, "--peers", "foolbox,pyautoattack", "--out", "compared"])
    assert list(found) == [5, 3]
    outcomes = [one for comparison in found.values() for one in comparison.outcomes]
    assert all(one.distances.shape == (40,) for one in outcomes)
    printed = capsys.readouterr().out
    assert "40 test images, l_2" in printed
    assert "in the ball of radius 5/16" in printed
    data = json.loads(Path("compared/attacks.json").read_text())
    assert [run["steps"] for run in data["runs"]] == [3, 5]
    assert str(folder) not in Path("compared/attacks.json").read_text()
    table = Path("compared/table.md").read_text()
    for one in outcomes:
        assert one.name[:8] in printed
        assert one.full_name in table
    kinds = {path.suffix for path in Path("compared").iterdir()}
    assert kinds == {".md", ".json", ".png", ".pdf", ".svg"}


def test_command_on_a_network_trained_elsewhere(tmp_path, capsys):
    """By the keys of evaluate.py, and by the folder of the data where no radius is given."""
    torch.manual_seed(0)
    torch.save(small_cnn((1, 8, 8), 10, [0.0], [1.0], width=4).state_dict(), tmp_path / "net.pt")
    keys = ["model=small_cnn", "model.width=4", "model.mean=[0.0]", "model.std=[1.0]", "data=digits"]
    keys += [f"model.weights={tmp_path / 'net.pt'}", "attack.delta=3/32"]
    found = compare_attacks.main([*keys[:3], "--limit", "30", "--steps", "2", *keys[3:], "--peers", "foolbox"])
    assert found[2].outcomes[0].backward == 4
    printed = capsys.readouterr().out
    assert "net: 30 test images, l_inf" in printed
    assert "in the ball of radius 3/32" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data=digits"], "data=digits names no network; give model=... and data=..., or a checkpoint"),
        (["modle=small_cnn"], "modle=small_cnn does not fit"),
        (["a.ckpt", "b.ckpt"], "a.ckpt b.ckpt are several checkpoints; give one"),
        (["none.ckpt"], "there is no checkpoint at none.ckpt"),
        (["model=small_cnn", "data=digits"], "has no weights"),
    ],
)
def test_networks_that_cannot_be_compared_on(arguments, said):
    with pytest.raises(UserError, match=re.escape(said)):
        compare_attacks.main(arguments)


@pytest.mark.slow
def test_command_says_what_is_wrong(tmp_path):
    done = run("-m", "wdro_train.tools.compare_attacks", "none.ckpt", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "none.ckpt" in done.stderr
    assert "Traceback" not in done.stderr

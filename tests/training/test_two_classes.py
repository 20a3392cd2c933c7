"""Two classes, the digits 3 and 8, through every door: training, sweep, evaluation with report, reference attacks."""

import json
import math

import numpy as np
import pytest
import torch
from oracles import random_batch, small_network
from PIL import Image
from shell import run
from sklearn.datasets import load_digits
from torch import nn

from wdro_train.attacks import WFGSM, MinimalDistance
from wdro_train.evaluation import robustness_curve
from wdro_train.evaluation.autoattack import run_reference_attack
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct, redlr

QUICK = [
    "trainer=cpu",
    "logger=csv",
    "callbacks.progress=null",
    "callbacks.images=null",
    "model.width=4",
    "trainer.max_epochs=4",
    "optimizer.lr=0.01",
]


def threes_and_eights():
    found = load_digits()
    chosen = np.isin(found.target, (3, 8))
    images = torch.tensor(found.images[chosen], dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(found.target[chosen] == 8).long()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder a class, as of cats and dogs."""
    root = tmp_path_factory.mktemp("digits")
    images, labels = threes_and_eights()
    for part, rows in (("train", range(240)), ("test", range(240, len(labels)))):
        for k in rows:
            place = root / part / ("three", "eight")[labels[k]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * images[k, 0]).round().byte().numpy()).save(place / f"{k:03d}.png")
    return root


@pytest.mark.slow
def test_every_door(folder, tmp_path):
    data = ["data=image_folder", f"data.root={folder}", "data.shape=[1,8,8]", "data.mean=[0.3]", "data.std=[0.4]"]
    data += ["data.delta={linf: 0.1, l2: 0.5}", "data.batch_size=32", "data.val_fraction=0.2", "model=small_cnn"]
    done = run("train.py", "-m", "seed=0,1", *data, *QUICK, "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seed" in done.stdout
    runs = sorted((tmp_path / "sweep").glob("*/metrics.json"))
    assert len(runs) == 2
    values = json.loads(runs[0].read_text())["test"]
    assert values["clean_acc"] > 0.7
    assert values["w0"] in (0, None)  # of ReDLR
    assert -1 <= values["v0"] <= values["v_q"] <= 0
    best = next(runs[0].parent.glob("checkpoints/best.ckpt"))
    judge = ["limit=12", "distances.steps=10", "poster.pgd_steps=3", "accelerator=cpu", "hydra.run.dir=judged"]
    done = run("evaluate.py", f"ckpt_path={best}", *judge, "peers.autoattack=true", "attack.delta=0.4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = json.loads((tmp_path / "judged/report.json").read_text())["models"][0]
    assert {row["loss"] for row in model["poster"]} == {"ce", "redlr"}
    for row in model["poster"]:
        if row["loss"] == "redlr":
            assert -1 <= row["v0"] <= row["v_pgd"] <= 0
    assert [peer["name"] for peer in model["peers"]] == ["AutoAttack (apgd-ce, fab-t, square)"]
    assert model["peers"][0]["accuracy"] <= model["clean_accuracy"]


@pytest.fixture(scope="module")
def fitted():
    """A network that tells most of them apart."""
    torch.manual_seed(0)
    x, y = threes_and_eights()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:240]), y[:240]).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("p", [2.0, math.inf])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_mean_loss_bounds_the_worst_case_and_the_attack_works(fitted, p, scale):
    """A_delta >= -V_ReDLR; and one step of W-FGSM moves what the network is sure of too."""
    x, y = threes_and_eights()
    model = nn.Sequential(fitted, nn.Linear(2, 2, bias=False))
    nn.init.constant_(model[1].weight, 0.0)
    with torch.no_grad():
        model[1].weight += scale * torch.eye(2)
    curve = robustness_curve(model, [(x, y)], norm="inf", steps=20)
    attack = WFGSM(p=p, norm="inf", delta=0.15, loss="redlr")
    found = attack(model, x, y)
    assert found.zero_gradients == (~correct(model(x), y)).sum()
    left = correct(model(found.x_adv), y).double().mean()
    assert left < curve.clean_accuracy - 0.1
    assert redlr(model(found.x_adv), y).mean() > redlr(model(x), y).mean()
    assert curve.accuracy(0.15, p) <= left + 1e-9
    assert left >= -redlr(model(found.x_adv), y).mean()


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 4, 7])
@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_autoattack_with_few_classes(classes, norm, tmp_path):
    pytest.importorskip("pyautoattack", reason="the reference attacks are an extra")
    model = small_network(classes=classes)
    x, _ = random_batch(6, classes=classes)
    with torch.no_grad():
        y = model(x).argmax(1)
    curve = robustness_curve(model, [(x, y)], norm=norm, steps=30)
    delta = float(1.3 * curve.distances.max())
    engine = Engine(model, [(x, y)], PieceStore(tmp_path, {}))
    ball = WassersteinBall(math.inf, norm, delta)
    found = run_reference_attack(engine, ball, attacks=None, name="AutoAttack")
    assert found.name == ("AutoAttack" if classes > 3 else "AutoAttack (apgd-ce, fab-t, square)")
    assert found.accuracy == 0
    assert (found.flips <= delta).all()


def test_targets_beyond_the_only_rival():
    x, y = random_batch(8, classes=2)
    model = small_network(classes=2)
    one, many = (MinimalDistance(norm=2, steps=5, targets=t)(model, x, y).distances for t in (1, 9))
    assert torch.equal(one, many)

"""The whole-set engine: batching, ranks, interruptions, first-order slopes, and the door."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from oracles import on_ranks, reference_images, reference_network, reference_records
from shell import run

from wdro_train.attacks import WFGSM, WPGD, MinimalDistance
from wdro_train.evaluation import robustness_curve
from wdro_train.evaluation.distances import find_distances
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.first_order_grid import first_order_grid
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.streamed_pgd import streamed_pgd
from wdro_train.evaluation.whole_set_pgd import pgd_whole_set
from wdro_train.metrics import FirstOrderBounds
from wdro_train.theory.losses import correct, resolve_loss
from wdro_train.utils.distributed import LocalReducer
from wdro_train.utils.errors import UserError

CPU = torch.device("cpu")


def batches(n=100, size=33):
    x, y = reference_images()
    return list(zip(x[:n].split(size), y[:n].split(size), strict=True))


def engine(folder, found=None, **kwargs):
    return Engine(reference_network("adversarial"), found or batches(), PieceStore(folder, {}), **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "redlr"])
@pytest.mark.parametrize(("p", "norm"), [(2, math.inf), (1.5, 2), (math.inf, 2), (2, 1)])
def test_streamed_pgd_is_pgd_on_one_batch(p, norm, loss):
    model, (x, y) = reference_network("adversarial"), (torch.cat(part) for part in zip(*batches(), strict=True))
    attack = WPGD(
        p=p, norm=norm, delta=0.1 if norm == math.inf else 1.0, loss=loss, steps=12, keep="best", random_start=False
    )
    whole = attack(model, x, y)
    streamed = streamed_pgd(attack, model, batches(), reducer=LocalReducer(), device=CPU)
    assert streamed.accuracy == pytest.approx(correct(whole.adv_logits, y).double().mean().item())
    assert streamed.max_mean_loss == pytest.approx(whole.best_mean_loss.item(), abs=1e-6)
    np.testing.assert_allclose(streamed.distances, whole.distances.numpy(), rtol=1e-4, atol=1e-5)


def test_streamed_pgd_leaves_no_files_behind(tmp_path):
    attack = WPGD(p=2, norm=2, delta=1.0, steps=1, random_start=False)
    streamed_pgd(
        attack, reference_network("standard"), batches(20), reducer=LocalReducer(), device=CPU, folder=tmp_path
    )
    assert not list(tmp_path.iterdir())


def test_ranks_share_the_work_and_agree(tmp_path):
    def work(reducer, model):
        ours = Engine(model, batches(), PieceStore(tmp_path / "two", {}), reducer=reducer)
        found = find_distances(ours, MinimalDistance(norm=2, steps=3))
        return found.distances, pgd_whole_set(ours, norm=2, loss="ce", p=2, delta=1.0, steps=3, box=True)

    alone = work(LocalReducer(), reference_network("adversarial"))
    assert PieceStore(tmp_path / "two", {}).discard()
    for distances, attacked in on_ranks(2, work, reference_network("adversarial")):
        np.testing.assert_allclose(distances, alone[0], rtol=1e-6)
        assert attacked.accuracy == alone[1].accuracy
        assert attacked.largest_mean_loss == pytest.approx(alone[1].largest_mean_loss, abs=1e-6)
        np.testing.assert_allclose(attacked.flips, alone[1].flips, rtol=1e-4)


def test_finished_batches_are_not_done_again(tmp_path):
    attack = MinimalDistance(norm=math.inf, steps=2)
    first = find_distances(engine(tmp_path), attack)
    again, looks = engine(tmp_path), []
    handle = again.model.register_forward_hook(lambda *_: looks.append(1))
    try:
        second = find_distances(again, attack)
        seen_after_restart = len(looks)
        find_distances(engine(tmp_path / "elsewhere"), attack)
    finally:
        handle.remove()
    assert np.array_equal(second.distances, first.distances)
    assert seen_after_restart == 0 < len(looks)


@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("loss", ["ce", "redlr"])
def test_slope_of_pgd_is_upsilon(tmp_path, loss, box):
    """V(delta) - V(0) over delta, within 2 %: with the box against Upsilon_box, away from it against Upsilon."""
    model, found = reference_network("adversarial"), batches(200, 200)
    if not box:  # images squeezed away from 0 and 1, which the network undoes: no box is felt
        found = [(0.25 + 0.5 * x, y) for x, y in found]
        model = torch.nn.Sequential(_Stretch(), model)
    ours = Engine(model.eval(), found, PieceStore(tmp_path, {}))
    delta = 2e-4
    grid = first_order_grid(ours, norm=math.inf, loss=loss, orders=[2.0], deltas=[delta], box=box)
    attacked = pgd_whole_set(ours, norm=math.inf, loss=loss, p=2.0, delta=delta, steps=10, box=box)
    assert (attacked.largest_mean_loss - grid.v0) / delta == pytest.approx(grid.upsilon[2.0], rel=0.02)


class _Stretch(torch.nn.Module):
    def forward(self, x):
        return 2 * x - 0.5


def test_first_order_grid_is_the_record(tmp_path):
    """Upsilon, V(0) and W-FGSM of the 2023 code, from batches."""
    records = [
        r for r in reference_records("adversarial", "attacks") if float(r["p"]) == 2 and float(r["norm"]) == math.inf
    ]
    assert records
    ours = engine(tmp_path, batches(500, 128))
    for loss in {r["loss"] for r in records}:
        mine = [r for r in records if r["loss"] == loss]
        deltas = [r["delta"] for r in mine]
        grid = first_order_grid(ours, norm=math.inf, loss=loss.lower(), orders=[2.0], deltas=deltas, box=False)
        for record in mine:
            point = (2.0, record["delta"])
            assert grid.fgsm_acc[point] == pytest.approx(record["wfgsm_accuracy"], abs=0.0021)
            assert grid.v_q[point] == pytest.approx(record["wfgsm_mean_loss"], rel=1e-3)


def test_metric_and_report_have_the_same_quantities(tmp_path):
    """One batch is the whole set for W-FGSM too, so the metric of training and the grid of a report must agree."""
    model, ((x, y),) = reference_network("adversarial"), batches(100, 100)
    attack = WFGSM(p=2, norm=math.inf, delta=0.1, loss="redlr")
    found = attack(model, x, y)
    with torch.no_grad():
        logits = model(found.x_adv)
    metric = FirstOrderBounds(attack.ball)
    losses = resolve_loss("redlr")(logits, y)
    metric.update(found.logits, y, found.losses, logits, losses, found.dual_norms, found.distances)
    grid = first_order_grid(engine(tmp_path), norm=math.inf, loss="redlr", orders=[2.0], deltas=[0.1])
    computed = {key: value.item() for key, value in metric.compute().items()}
    assert computed == pytest.approx(asdict(grid.quantities(2.0, 0.1)), rel=1e-5)


def test_five_lines_of_python():
    curve = robustness_curve(reference_network("adversarial"), batches(60, 20), norm="inf", steps=5)
    assert curve.accuracy(0.1, p=2) < curve.accuracy(0.1, p=math.inf) < curve.clean_accuracy


def test_a_network_of_normalised_images_is_judged_by_one_call():
    """(x - mean) / std is part of the network: distances are those of images in [0, 1]."""
    bare = reference_network("adversarial")
    shifted = torch.nn.Sequential(Denormalize(), bare).eval()
    alone, around = (
        robustness_curve(net, batches(20, 10), norm=2, steps=3, **given)
        for net, given in ((bare, {}), (shifted, {"mean": 0.5, "std": [0.25]}))
    )
    assert np.allclose(alone.distances, around.distances, rtol=1e-3)
    assert around.clean_accuracy == alone.clean_accuracy
    for wrong, said in (
        ({"mean": 0.5}, "mean=0.5, std=None: give both, or neither"),
        ({"mean": [0.5] * 3, "std": [0.25] * 3}, "mean and std are for 3 channels, but the images have 1"),
    ):
        with pytest.raises(UserError, match=said):
            robustness_curve(shifted, batches(20, 10), norm=2, steps=1, **wrong)


class Denormalize(torch.nn.Module):
    """What undoes mean 0.5 and standard deviation 0.25."""

    def forward(self, x):
        return x * 0.25 + 0.5


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    options = ["trainer.max_epochs=2", "logger=csv", "test=false", "callbacks.images=null", "hydra.run.dir=run"]
    done = run("train.py", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def result(folder):
    found = json.loads((folder / "report.json").read_text())
    for key in ("command", "created", "config"):
        del found[key]
    return found


OPTIONS = [
    "ckpt_path=run/checkpoints/best.ckpt",
    *["batch_size=12", "poster.losses=[ce]", "poster.pgd_steps=5", "poster.deltas=[0.1]", "accelerator=cpu"],
]


@pytest.mark.slow
def test_two_processes_write_the_same_report(run_folder):
    for name, devices in (("one", 1), ("two", 2)):
        done = run("evaluate.py", *OPTIONS, f"devices={devices}", f"hydra.run.dir={name}", cwd=run_folder)
        assert done.returncode == 0, done.stderr
    one, two = (result(run_folder / name)["models"][0] for name in ("one", "two"))
    np.testing.assert_allclose(one["distances"]["values"], two["distances"]["values"], rtol=1e-6)
    for ours, theirs in zip(one["poster"], two["poster"], strict=True):
        assert [ours.pop(key) for key in ("loss", "norm")] == [theirs.pop(key) for key in ("loss", "norm")]
        assert ours == pytest.approx(theirs, rel=1e-4, nan_ok=True)


@pytest.mark.slow
def test_door_says_what_it_judges_and_what_is_wrong(run_folder):
    newest = run("evaluate.py", "limit=5", "poster=null", "hydra.run.dir=newest", cwd=run_folder)
    assert newest.returncode != 0
    assert "none under runs/" in newest.stderr
    both = run(
        "evaluate.py",
        "ckpt_path=run/checkpoints/best.ckpt,run/checkpoints/last.ckpt",
        *["limit=20", "poster=null", "hydra.run.dir=both"],
        cwd=run_folder,
    )
    assert both.returncode == 0, both.stderr
    assert len(result(run_folder / "both")["models"]) == 2

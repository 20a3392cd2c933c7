"""Certified columns of a study: which method gets which certificate, and what is refused."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import reference_images, reference_network

from wdro_train.certificates import LinearRelaxation
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import certified_runs, command_line, compare_methods
from wdro_train.tools.accuracies import accuracies, curves, radii_of_curves
from wdro_train.tools.certified_runs import certify, chosen_certificates, refuse_uncovered
from wdro_train.tools.method_tables import certified_note, figures, summary
from wdro_train.utils.errors import UserError

METHODS = ("pgd_at", "trades", "lipschitz_dual")


def test_one_certificate_for_all_and_others_by_method():
    assert chosen_certificates("", METHODS) == {}
    assert chosen_certificates("ibp", METHODS) == dict.fromkeys(METHODS, "ibp")
    assert chosen_certificates("trades=crown", METHODS) == {"trades": "crown"}
    given = chosen_certificates("crown,lipschitz_dual=lipschitz", METHODS)
    assert given == {"pgd_at": "crown", "trades": "crown", "lipschitz_dual": "lipschitz"}
    odd = chosen_certificates("worst_case-limit=0.2=ibp", ["worst_case-limit=0.2"])  # names of runs hold what they like
    assert odd == {"worst_case-limit=0.2": "ibp"}
    with pytest.raises(UserError, match="no run of mart; choose from lipschitz_dual, pgd_at, trades"):
        chosen_certificates("mart=ibp", METHODS)
    with pytest.raises(UserError, match="two certificates for all methods"):
        chosen_certificates("ibp,crown", METHODS)
    with pytest.raises(UserError, match="two certificates for trades"):
        chosen_certificates("trades=ibp,trades=crown", METHODS)


@pytest.mark.parametrize(
    ("name", "says"),
    [("smoothing", "its smoothed version"), ("exact", "run evaluate.py certificate.method=exact"), ("cron", "unknown")],
)
def test_certificates_that_no_table_can_hold_are_refused(name, says):
    for given in (name, f"trades={name}"):
        with pytest.raises(UserError, match=says):
            chosen_certificates(given, METHODS)


def certified(method, name="ibp", images=50):
    return {"method": method, "images": 50} | ({"certified": {"method": name, "images": images}} if name else {})


@pytest.mark.parametrize(
    ("known", "asked", "says"),
    [
        ({"a_0": certified("a"), "a_1": certified("a", "crown")}, {}, "a_0 has ibp on 50 images, a_1 has crown on 50"),
        ({"a_0": certified("a"), "a_1": certified("a", images=20)}, {}, "a_1 has ibp on 20 images"),
        ({"a_0": certified("a"), "a_1": certified("a", None)}, {}, "a_1 has no certificate"),
        ({"a_0": certified("a"), "a_1": certified("a", None)}, {"a": "ibp"}, "a_1 has no certificate"),  # folder gone
        ({"a_0": certified("a")}, {"a": "crown"}, "a_0 was certified by ibp on 50 images; give --certificate a=ibp"),
        ({"a_0": certified("a", images=20)}, {"a": "ibp"}, "a_0 was certified by ibp on 20 images"),
        ({"a_0": certified("a"), "a_1": certified("a"), "b_0": certified("b", "crown")}, {"a": "ibp"}, None),
        ({"a_0": certified("a", None)}, {}, None),
    ],
)
def test_results_whose_run_is_gone_are_certified_alike(known, asked, says):
    given = SimpleNamespace(norm=math.inf, certificate_images=None)
    with pytest.raises(UserError, match=says) if says else nullcontext():
        compare_methods._refuse_other_certificates([], known, asked, given)


def test_a_new_run_gets_the_certificate_of_the_others():
    given, known = SimpleNamespace(norm=math.inf, certificate_images=None), {"a_0": certified("a")}
    with pytest.raises(UserError, match="a_0 has ibp on 50 images, a_1 has no certificate"):
        compare_methods._refuse_other_certificates([Path("runs/a_1")], known, {}, given)


@pytest.fixture
def judged(monkeypatch):
    """The network of tests/reference on 20 images, as the command would load it."""
    x, y = (part[:20] for part in reference_images())
    monkeypatch.setattr(certified_runs, "load_arrays", lambda config, split, limit: (x[:limit], y[:limit]))
    monkeypatch.setattr(certified_runs, "ArrayBatches", lambda arrays, size: [arrays])
    return SimpleNamespace(model=reference_network("adversarial"), config={}, path=Path("best.ckpt")), x, y


def test_a_run_is_certified_on_the_images_that_were_attacked(judged):
    network, x, y = judged
    attacked = RobustnessCurve(np.r_[np.full(20, 0.5), np.full(10, math.inf)])
    radii = LinearRelaxation(norm=math.inf, method="ibp")(network.model, x, y).radii.numpy()
    part = certify(network, "ibp", math.inf, [0.01, 0.02], 20, RobustnessCurve(attacked.distances))
    assert (part["method"], part["images"]) == ("ibp", 20)
    assert part["accuracies"] == accuracies(RobustnessCurve(radii), [0.01, 0.02])
    assert part["attacked"]["inf"] == {"0.01": 1.0, "0.02": 1.0}
    assert 0 < part["accuracies"]["2"]["0.01"] < part["clean"]
    with pytest.raises(UserError, match="images are flipped nearer than ibp certifies them"):
        certify(network, "ibp", math.inf, [0.01, 0.02], 20, RobustnessCurve(np.where(radii > 0, radii / 2, 0.0)))


def test_a_network_that_is_not_covered_is_named_before_any_work(judged):
    network, *_ = judged
    refuse_uncovered(network, "crown", math.inf)
    network.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10), torch.nn.Tanh())
    with pytest.raises(UserError, match=r"best.ckpt is not covered by crown: .*Tanh"):
        refuse_uncovered(network, "crown", math.inf)


def result(method, seed, *, certified):
    deltas = [0.05, 0.1]
    attacked, sure = (RobustnessCurve(np.linspace(0, top + 0.01 * seed, 50)) for top in (0.4, 0.3))
    found = {
        "method": method,
        "seed": seed,
        "images": 50,
        "norm": "inf",
        "clean": attacked.clean_accuracy,
        "deltas": radii_of_curves(deltas),
        "curves": curves(attacked, deltas),
        "accuracies": accuracies(attacked, deltas),
        "passes": 9.0,
    }
    if certified:
        found["certified"] = {
            "method": "ibp",
            "images": 50,
            "clean": sure.clean_accuracy,
            "accuracies": accuracies(sure, deltas),
            "curves": curves(sure, deltas),
            "attacked": found["accuracies"],
            "attacked_curves": found["curves"],
        }
    return found


def test_columns_and_note():
    results = [result("ibp", seed, certified=True) for seed in (0, 1)] + [result("pgd_at", 0, certified=False)]
    rows = {row["training"]: row for row in summary(results, [0.05, 0.1])}
    sure = [100 * part["certified"]["accuracies"]["2"]["0.1"] for part in results[:2]]
    least, spread = rows["ibp"]["certified W_2 0.1"].split(" ± ")
    assert np.mean(sure) - 0.1 < float(least) <= np.mean(sure)
    assert spread == f"{np.std(sure, ddof=1):.1f}"
    assert rows["pgd_at"]["certified W_2 0.1"] == rows["pgd_at"]["certified W_inf 0.1"] == ""
    assert certified_note(results) == "certified figures are lower bounds, rounded down, by ibp on 50 images"
    assert certified_note(results[2:]) == ""
    assert not any(key.startswith("certified") for row in summary(results[2:], [0.05, 0.1]) for key in row)
    typed = summary(results, command_line.radii("5/100, 1/10"))[0]
    assert {"W_2 5/100", "W_2 1/10", "certified W_1 1/10", "AutoAttack 1/10"} <= typed.keys()


def test_the_figure_holds_both_curves_and_the_area_between(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.append(figure))
    results = [result("ibp", seed, certified=True) for seed in (0, 1)] + [result("pgd_at", 0, certified=False)]
    figures(results, [0.05, 0.1], tmp_path)
    for ax, p in zip(drawn[0].axes, ("2", "inf"), strict=True):
        lines = [line.get_ydata().tolist() for line in ax.lines]
        attacked, sure = (
            np.mean([part[p] for part in parts], axis=0).tolist()
            for parts in ([r["curves"] for r in results[:2]], [r["certified"]["curves"] for r in results[:2]])
        )
        assert attacked in lines
        assert sure in lines
        assert len(lines) == 3
        assert len(ax.collections) == 4  # two upper ends, one lower end, one area
    results[0]["certified"]["images"] = 20
    figures(results, [0.05, 0.1], tmp_path)
    assert [len(ax.collections) for ax in drawn[2].axes] == [3, 3]  # of other images: nothing is enclosed

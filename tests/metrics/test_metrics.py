import math
import pickle
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from oracles import power_mean, random_batch, small_network
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from wdro_train.attacks import WFGSM
from wdro_train.metrics import (
    AdversarialAccuracy,
    CertifiedAccuracy,
    CleanAccuracy,
    FirstOrderBounds,
    Mean,
    MeanLoss,
    WorstCaseAccuracy,
)
from wdro_train.metrics.functional import accuracy_ratio, first_order_value, lower_bounds
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import redlr
from wdro_train.utils.errors import UserError

INF = math.inf
THREATS = [(1.5, 2.0), (2.0, INF), (INF, 1.0)]
OF_CLEAN_IMAGES = {CleanAccuracy: "clean_acc", MeanLoss: "loss"}
KINDS = [*OF_CLEAN_IMAGES, AdversarialAccuracy, FirstOrderBounds]


def evidence(p, s, count=60, delta=0.4, seed=0):
    """Everything the metrics are shown, from W-FGSM on a network that gets most images right."""
    x, _ = random_batch(count, seed=seed)
    model = small_network()
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[::5] = (labels[::5] + 1) % 5
    ball = WassersteinBall(p, s, delta)
    result = WFGSM(p=p, norm=s, delta=delta, loss=redlr)(model, x, labels)
    with torch.no_grad():
        q_logits = model(result.x_adv)
    return ball, {
        "preds": result.logits,
        "adv_preds": q_logits,
        "q_preds": q_logits,
        "clean_losses": result.losses,
        "q_losses": redlr(q_logits, labels),
        "dual_norms": result.dual_norms,
        "distances": result.distances,
        "q_distances": result.distances,
        "target": labels,
        "weight": torch.ones(count),
    }


def make(kind, ball):
    return kind() if kind in OF_CLEAN_IMAGES else kind(ball)


def collection(ball):
    return MetricCollection([make(kind, ball) for kind in KINDS], compute_groups=False)


def by_hand(ball, data):
    """The definitions, in numpy, over one whole set."""
    z, q = data["preds"].double().numpy(), data["q_preds"].double().numpy()
    y, rows = data["target"].numpy(), np.arange(len(data["target"]))

    def right(logits):
        others = np.where(np.arange(5) == y[:, None], -np.inf, logits).max(1)
        return logits[rows, y] > others

    def loss(logits):
        others = np.where(np.arange(5) == y[:, None], -np.inf, logits).max(1)
        top = np.sort(logits, 1)
        return np.minimum(-(logits[rows, y] - others) / (top[:, -1] - top[:, -3]), 0)

    A, Q = right(z).mean(), right(q).mean()
    V0, VQ, W0 = loss(z).mean(), loss(q).mean(), loss(z)[~right(z)].mean()
    upsilon = power_mean(data["dual_norms"], ball.q)
    spent = power_mean(data["distances"], ball.p)
    attack, gradient = (W0 - VQ) / (W0 - V0), (W0 - V0 - ball.delta * upsilon) / (W0 - V0)
    return {
        "clean_acc": A,
        "loss": (np.log(np.exp(z).sum(1)) - z[rows, y]).mean(),
        "adv_acc": Q,
        "ratio": Q / A,
        "spent": spent,
        "v0": V0,
        "w0": W0,
        "v_q": VQ,
        "upsilon": upsilon,
        "v_first_order": V0 + ball.delta * upsilon,
        "fgsm_acc": Q,
        "fgsm_spent": spent,
        "ratio_upper": Q / A,
        "ratio_lower_attack": attack,
        "ratio_lower_gradient": gradient,
        "ratio_lower": max(0.0, min(attack, gradient)),
    }


def values(found):
    return {key: value.item() for key, value in found.items()}


@pytest.mark.parametrize(("p", "s"), THREATS)
@pytest.mark.parametrize("sizes", [[60], [1, 22, 30, 7], [20, 20, 20]])
def test_whole_set_values_for_any_batching(p, s, sizes):
    ball, data = evidence(p, s)
    metrics = collection(ball)
    for chunk in zip(*(v.split(sizes) for v in data.values()), strict=True):
        metrics.update(**dict(zip(data, chunk, strict=True)))
    assert values(metrics.compute()) == pytest.approx(by_hand(ball, data), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("p", "s"), THREATS)
def test_padding_and_order(p, s):
    ball, data = evidence(p, s)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    padded = {k: torch.cat([v[order], v[:9] * (1 if k == "target" else math.nan)]) for k, v in data.items()}
    padded["weight"] = (torch.arange(69) < 60).float()
    metrics = collection(ball)
    metrics.update(**padded)
    assert values(metrics.compute()) == pytest.approx(by_hand(ball, data), rel=1e-5, abs=1e-6)


def test_ratio_of_the_set_is_not_the_mean_of_batch_ratios():
    eye = torch.eye(3)
    metric = AdversarialAccuracy(WassersteinBall(2, 2, 1))
    first = {"preds": eye[[0, 0, 0, 0]], "adv_preds": eye[[0, 0, 0, 1]]}  # 3/4 of 1
    second = {"preds": eye[[0, 1, 1, 1]], "adv_preds": eye[[1, 1, 1, 1]]}  # 0 of 1/4
    zero = torch.zeros(4)
    for batch in (first, second):
        metric.update(**batch, target=zero.long(), distances=zero, weight=zero + 1)
    assert metric.compute()["ratio"].item() == pytest.approx(3 / 5)  # not (3/4 + 0) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_as_a_torchmetric(kind):
    ball, data = evidence(2.0, 2.0)
    metric = make(kind, ball)
    data = {k: v for k, v in data.items() if k in metric._update_signature.parameters}
    halves = [{k: v[s] for k, v in data.items()} for s in (slice(25), slice(25, 60))]
    expected = {k: v for k, v in by_hand(ball, evidence(2.0, 2.0)[1]).items() if k in metric_keys(kind)}
    # forward gives the batch's value and accumulates
    batch = metric(**halves[0])
    alone = make(kind, ball)
    alone.update(**halves[0])
    assert values(batch) == pytest.approx(values(alone.compute()), rel=1e-6)
    metric(**halves[1])
    assert values(metric.compute()) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    # a pickled copy goes on from there
    copy = pickle.loads(pickle.dumps(alone))
    copy.update(**halves[1])
    assert values(copy.compute()) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    # states stay wide and move with the metric
    states = {k: getattr(metric, k) for k in metric._defaults}
    assert {v.dtype for v in states.values()} <= {torch.int64, torch.float64}
    metric.half().to("cpu")
    assert {k: getattr(metric, k).dtype for k in states} == {k: v.dtype for k, v in states.items()}
    metric.to("meta")
    assert all(getattr(metric, k).is_meta for k in states)
    alone.reset()
    assert all(getattr(alone, k).count_nonzero() == 0 for k in alone._defaults)
    alone.update(**data)
    assert values(alone.compute()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def metric_keys(kind):
    if kind in OF_CLEAN_IMAGES:
        return {OF_CLEAN_IMAGES[kind]}
    attack = {"adv_acc", "ratio", "spent"}
    bounds = set(by_hand(*evidence(2.0, 2.0))) - {*OF_CLEAN_IMAGES.values(), *attack}
    return bounds if kind is FirstOrderBounds else attack


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_are_joined_by_the_declared_reductions(kind):
    ball, data = evidence(1.5, 2.0)
    whole, ranks = make(kind, ball), [make(kind, ball) for _ in range(3)]
    data = {k: v for k, v in data.items() if k in whole._update_signature.parameters}
    whole.update(**data)
    for rank, metric in enumerate(ranks):
        metric.update(**{k: v[rank::3] for k, v in data.items()})
    for name, reduction in whole._reductions.items():
        setattr(ranks[0], name, reduction(torch.stack([getattr(metric, name) for metric in ranks])))
    assert values(ranks[0].compute()) == pytest.approx(values(whole.compute()), rel=1e-9)


def bounds_of(right, losses):
    """FirstOrderBounds over images that are right or wrong, with given losses."""
    metric = FirstOrderBounds(WassersteinBall(2, 2, 0.1))
    logits = torch.eye(3)[torch.where(torch.tensor(right), 0, 1)]
    losses, one = torch.tensor(losses), torch.ones(len(right))
    metric.update(logits, torch.zeros(len(right)).long(), losses, logits, losses, one, one)
    return metric


def test_undefined_ratios_are_nan_and_say_why():
    with pytest.warns(UserWarning, match=r"NaN reported: no image is misclassified, so W\(0\)"):
        found = bounds_of([True, True], [0.1, 0.2]).compute()
    assert all(found[k].isnan() for k in ("w0", "ratio_lower", "ratio_lower_attack", "ratio_lower_gradient"))
    assert found["ratio_upper"] == 1
    with pytest.warns(match="NaN reported: the clean accuracy is 0"), pytest.warns(match="is not above V"):
        found = bounds_of([False, False], [1.0, 2.0]).compute()
    assert found["ratio_upper"].isnan()
    with pytest.warns(UserWarning, match=r"NaN reported: W\(0\)=0\.1 is not above V\(0\)=0\.55"):
        found = bounds_of([True, False], [1.0, 0.1]).compute()
    assert found["w0"].item() == pytest.approx(0.1)
    assert found["ratio_lower"].isnan()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bounds_of([True, False], [0.1, 1.0]).compute()["ratio_lower"].isfinite()


def test_adversarial_ratio_without_clean_accuracy():
    metric = AdversarialAccuracy(WassersteinBall(2, 2, 0.1))
    wrong, one = torch.eye(3)[[1, 1]], torch.ones(2)
    metric.update(wrong, torch.zeros(2).long(), wrong, one)
    with pytest.warns(UserWarning, match="the clean accuracy is 0, so no ratio to it is defined"):
        assert metric.compute()["ratio"].isnan()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_shown_is_nan(kind):
    found = values(make(kind, WassersteinBall(2, 2, 0.1)).compute())
    zero = {"upsilon", "spent", "fgsm_spent"}
    assert all(math.isnan(v) for k, v in found.items() if k not in zero)
    assert all(found[k] == 0 for k in zero & set(found))


def test_functional_bounds():
    assert accuracy_ratio(0.3, 0.6) == pytest.approx(0.5)
    assert first_order_value(-0.5, 0.1, 2.0) == pytest.approx(-0.3)
    bounds = lower_bounds(w0=2.0, v0=0.5, v_q=1.0, delta=0.1, upsilon=9.0)
    assert (bounds.attack, bounds.gradient) == pytest.approx((1 / 1.5, 0.6 / 1.5))
    assert bounds.minimum == bounds.gradient
    beyond = lower_bounds(w0=2.0, v0=0.5, v_q=1.0, delta=1.0, upsilon=9.0)  # so far out the formula is negative
    assert beyond.gradient == pytest.approx(-5)
    assert beyond.minimum == 0
    with pytest.warns(UserWarning, match="the clean accuracy is nan"):
        assert math.isnan(accuracy_ratio(0.5, math.nan))


def test_redlr_bound_is_one_minus_delta_upsilon_over_v0():
    ball, data = evidence(2.0, 2.0, delta=0.01)
    metric = FirstOrderBounds(ball)
    metric.update(**{k: v for k, v in data.items() if k in metric._update_signature.parameters})
    found = values(metric.compute())
    assert found["w0"] == 0
    assert found["ratio_lower_gradient"] == pytest.approx(1 - 0.01 * found["upsilon"] / abs(found["v0"]), rel=1e-5)


FORMER = {"preds": "clean_logits", "target": "labels", "adv_preds": "adv_logits", "q_preds": "q_logits"}


def everything(count=20):
    """Arguments of every metric, without weights."""
    ball, data = evidence(2.0, INF, count)
    data = {key: value for key, value in data.items() if key != "weight"}
    return ball, data | {"flips": data["distances"], "radii": data["distances"] / 2}


def all_metrics(ball):
    of_a_ball = [kind(ball) for kind in (AdversarialAccuracy, FirstOrderBounds, WorstCaseAccuracy, CertifiedAccuracy)]
    return [CleanAccuracy(), MeanLoss(), *of_a_ball]


def taken(metric, data):
    return {key: value for key, value in data.items() if key in metric._update_signature.parameters}


@pytest.mark.parametrize("position", range(6))
def test_weights_are_optional_and_positions_are_those_of_torchmetrics(position):
    ball, data = everything()
    found = []
    for given in (data, data | {"weight": torch.ones(20)}, "positions"):
        metric = all_metrics(ball)[position]
        if given == "positions":
            names = [name for name in metric._update_signature.parameters if name in data]
            assert names[:2] == ["preds", "target"] or names == ["flips"]
            metric.update(*(data[name] for name in names))
        else:
            metric.update(**taken(metric, given))
        found.append(values(metric.compute()))
    assert found[1] == pytest.approx(found[0], nan_ok=True)
    assert found[2] == pytest.approx(found[0], nan_ok=True)


def test_a_mean_without_weights():
    metric = Mean()
    metric.update(torch.tensor([1.0, 4.0]))
    assert metric.compute() == 2.5


def test_beside_a_metric_of_torchmetrics():
    ball, data = everything()
    both = MetricCollection([MulticlassAccuracy(5, average="micro"), *all_metrics(ball)], prefix="test/")
    for rows in (slice(0, 7), slice(7, 20)):
        both.update(**{key: value[rows] for key, value in data.items()})
    found = both.compute()
    assert found["test/MulticlassAccuracy"] == found["test/clean_acc"] == by_hand(ball, data)["clean_acc"]
    alone = {}
    for metric in all_metrics(ball):
        metric.update(**taken(metric, data))
        alone |= metric.compute()
    assert {key.removeprefix("test/") for key in found} == {*alone, "MulticlassAccuracy"}
    assert all(found[f"test/{key}"] == value for key, value in alone.items())
    short = MetricCollection([MulticlassAccuracy(5, average="micro"), CleanAccuracy()])
    short.update(data["preds"], data["target"])
    assert short.compute()["clean_acc"] == found["test/clean_acc"]


def test_former_names_of_arguments_work_and_say_the_present_ones():
    ball, data = everything()
    former = {FORMER.get(key, key): value for key, value in data.items()}
    present, past = (MetricCollection(all_metrics(ball), compute_groups=False) for _ in range(2))
    present.update(**data)
    with pytest.warns(FutureWarning, match="clean_logits is preds, labels is target"):
        past.update(**former)
    assert values(past.compute()) == values(present.compute())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        present.update(**data)


def test_arguments_that_have_changed_places_are_refused():
    ball, data = everything()
    with pytest.raises(UserError, match=r"target is torch\.float32 of shape \(20, 5\); give one label for each"):
        AdversarialAccuracy(ball).update(data["preds"], data["adv_preds"], data["target"], data["distances"])
    with pytest.raises(UserError, match=r"preds are torch\.int64 of shape \(20,\); give logits"):
        CleanAccuracy().update(data["preds"].argmax(1), data["target"])
    with pytest.raises(UserError, match=r"flips have shape \(20, 5\); give one distance an image"):
        WorstCaseAccuracy(ball).update(data["preds"])


@pytest.mark.parametrize("position", range(6))
def test_every_metric_can_be_drawn(position):
    ball, data = everything()
    metric = all_metrics(ball)[position]
    metric.update(**taken(metric, data))
    figure, axes = metric.plot()
    assert {line.get_label() for line in axes.get_lines()} == set(metric.compute())
    again, same = metric.plot([metric.compute(), metric.compute()], ax=axes)
    assert (again, same) == (None, axes)
    assert axes.get_xlabel() == "Step"
    plt.close(figure)


def test_a_collection_can_be_drawn():
    ball, data = everything()
    both = MetricCollection([MulticlassAccuracy(5), CleanAccuracy(), AdversarialAccuracy(ball)])
    both.update(**data)
    figure, axes = both.plot(together=True)  # one by one torchmetrics can draw no metric of several values
    assert {line.get_label() for line in axes.get_lines()} >= {"MulticlassAccuracy", "clean_acc", "adv_acc"}
    plt.close(figure)

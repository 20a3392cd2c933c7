"""Training on the exact worst case: boundary points, the marginal distance, and what both cost."""

import math

import numpy as np
import pytest
import torch
from oracles import conjugate, norm, on_ranks
from shell import adversary, classifier, digits, fitted, loader, trainer
from torch import nn

from wdro_train.attacks import WPGD, BoundaryAttack, DualAscent, Fixed, MinimalDistance
from wdro_train.metrics import WorstCaseAccuracy
from wdro_train.objectives import Adversarial
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct, margin
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.training.callbacks import DistributionalAdversary
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

INF = math.inf
ORDERS = [1.0, 1.5, 2.0, 3.0]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def two_classes(count=60, pixels=25):
    """A linear classifier, images in the middle of the box, labels that are right for most."""
    x = 0.5 + 0.1 * torch.randn(count, 1, 5, pixels // 5, generator=seeded()).clamp(-2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(2, pixels, generator=seeded(1)))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
    y = model(x).argmax(1)
    y[::10] = 1 - y[::10]
    w = (model[1].weight[0] - model[1].weight[1]).detach().double()
    b = (model[1].bias[0] - model[1].bias[1]).detach().double()
    margins = (x.flatten(1).double() @ w + b).abs()
    return model, x, y, margins, w


@pytest.mark.parametrize("s", [INF, 2.0])
@pytest.mark.parametrize("start", [1.0, 0.0])
def test_linear_classifier(s, start):
    """Flips at |m| / ||w||_*, the others at the reach, wrong ones where they are."""
    model, x, y, margins, w = two_classes()
    exact = margins / norm(w[None], conjugate(s))[0]
    reach = exact.median().item()
    attack = BoundaryAttack(p=2, norm=s, delta=0.01 * reach, marginal=Fixed(reach), bisections=14, random_start=start)
    found = attack(model, x, y, generator=seeded())
    right = correct(model(x), y)
    moved = norm(found.x_adv.double() - x.double(), s)
    np.testing.assert_allclose(found.distances, moved, rtol=1e-6)
    near = right & (exact < 0.98 * reach)
    far = right & (exact > 1.02 * reach)
    assert min(near.sum(), far.sum(), (~right).sum()) >= 6
    tolerance = 6e-2 if start else 1e-3  # the segment to a noisy start leaves the shortest path a little
    np.testing.assert_allclose(moved[near], exact[near], rtol=tolerance)
    np.testing.assert_allclose(moved[far], reach, rtol=1e-3)
    assert moved[~right].max() == 0
    assert margin(model(found.x_adv), y)[near].max() < 1e-5  # on the boundary, up to rounding
    assert correct(model(found.x_adv), y)[far].all()
    assert found.terms["flipped"] == pytest.approx(near.double().mean().item(), abs=0.04)


@pytest.mark.parametrize("p", ORDERS)
def test_dual_ascent_finds_the_multiplier(p):
    """D ends at the knapsack's marginal distance, and flips nearer than D cost the budget."""
    rng = np.random.default_rng(0)
    d = np.where(rng.random(4000) < 0.1, 0, rng.gamma(2.0, 0.1, 4000))
    delta = 0.08 if p < 2 else 0.12
    expected = RobustnessCurve(d).worst_case(delta, p).marginal_distance
    dual, ball, x = DualAscent(), WassersteinBall(p, INF, delta), torch.zeros(1, 1, 8, 8)
    for _ in range(600):
        reach = dual.reach(ball, x)
        flips = torch.where(torch.tensor(d) <= reach, torch.tensor(d), math.inf)
        dual.update(ball, flips, torch.ones(len(d)))
    assert delta < expected < 0.6
    assert dual.reach(ball, x).item() == pytest.approx(expected, rel=2e-2)


def test_dual_ascent_stays_in_its_range():
    x = torch.zeros(1, 1, 8, 8)
    for s, diameter in ((INF, 1.0), (2.0, 8.0)):
        ball, dual = WassersteinBall(2, s, 0.1), DualAscent()
        assert dual.reach(ball, x) == 0.1
        for _ in range(200):
            dual.update(ball, torch.full((4,), math.inf), torch.ones(4))
        assert dual.reach(ball, x).item() == pytest.approx(0.6 * diameter)
        for _ in range(200):
            dual.update(ball, torch.full((4,), 0.12), torch.ones(4))
        assert dual.reach(ball, x).item() == pytest.approx(0.12, rel=0.05)
    pointwise = DualAscent()
    pointwise.reach(WassersteinBall(INF, INF, 0.1), x)
    pointwise.update(WassersteinBall(INF, INF, 0.1), torch.full((4,), math.inf), torch.ones(4))
    assert pointwise.reach(WassersteinBall(INF, INF, 0.1), x) == 0.1


@pytest.mark.parametrize("reach", [0.1, 0.13, 0.2])
def test_flips_at_the_reach_are_charged(reach):
    """Their distance, taken between float32 images, may come out an ulp above D."""
    ball, x = WassersteinBall(2, INF, 0.1), torch.zeros(1, 1, 8, 8)
    dual = DualAscent()
    dual.load_state_dict({"distance": torch.tensor(reach, dtype=torch.float64)})
    dual.reach(ball, x)
    dual.update(ball, torch.full((4,), float(torch.nextafter(torch.tensor(reach), torch.tensor(1.0)))), torch.ones(4))
    expected = max(reach * math.exp(0.05 * (1 - (reach / 0.1) ** 2)), 0.1)
    assert dual.reach(ball, x).item() == pytest.approx(expected, rel=1e-5)


def test_padding_does_not_count():
    ball, x = WassersteinBall(2, INF, 0.1), torch.zeros(1, 1, 8, 8)
    with_padding, without = DualAscent(), DualAscent()
    for dual, flips, weight in ((with_padding, [0.05, 0.09], [1.0, 0.0]), (without, [0.05], [1.0])):
        dual.reach(ball, x)
        dual.update(ball, torch.tensor(flips).double(), torch.tensor(weight).double())
    assert with_padding.reach(ball, x) == without.reach(ball, x) > 0.1


def test_a_rank_of_padding_does_not_count():
    """Every rank logs the share of flips of the global batch."""
    x, y = digits(30)

    def run(reducer, model):
        rows = slice(20 * reducer.rank, 20 + 10 * reducer.rank)
        weight = torch.full((len(y[rows]),), 1.0 - reducer.rank, dtype=torch.float64)
        pad = lambda part: torch.cat([part] * (2 if reducer.rank else 1))  # noqa: E731
        attack = BoundaryAttack(p=2, norm=INF, delta=0.1, random_start=0)
        return attack(model, pad(x[rows]), pad(y[rows]), weight=pad(weight), reducer=reducer).terms["flipped"]

    alone = BoundaryAttack(p=2, norm=INF, delta=0.1, random_start=0)(fitted(), x[:20], y[:20]).terms["flipped"]
    assert 0 < alone < 1
    assert on_ranks(2, run, fitted()) == [alone] * 2


def test_no_radius_is_standard_training():
    assert BoundaryAttack(p=2, norm=INF, delta=0)(fitted(), *digits(20)).importance is None


def test_importance():
    """(d / reach)^(p-1) for flips, `beyond` past the reach, 1 for what is wrong already."""
    model, x, y, _, _ = two_classes()
    options = {"norm": INF, "delta": 0.01, "marginal": Fixed(0.05), "bisections": 3}
    plain = BoundaryAttack(p=3, beyond=1, **options)(model, x, y, generator=seeded())
    assert plain.importance is None
    weighted = BoundaryAttack(p=3, weighted=True, beyond=0.25, **options)(model, x, y, generator=seeded())
    torch.testing.assert_close(weighted.x_adv, plain.x_adv)
    right = correct(model(x), y)
    flipped = ~correct(model(plain.x_adv), y) & right
    expected = torch.where(flipped, (plain.distances / 0.05) ** 2, torch.where(right, 0.25, 1.0))
    assert flipped.any()
    torch.testing.assert_close(weighted.importance, expected.double(), rtol=1e-4, atol=1e-6)
    losses = nn.functional.cross_entropy(model(plain.x_adv), y, reduction="none")
    result = Adversarial()(model, x, plain.x_adv, y, importance=weighted.importance)
    torch.testing.assert_close(result.loss, (losses * expected).mean().float(), rtol=1e-4, atol=1e-6)


def test_margin_maximisation_leaves_out_what_is_far():
    model, x, y, _, _ = two_classes()
    found = BoundaryAttack(p=INF, norm=INF, delta=0.01, marginal=Fixed(0.05), beyond=0)(model, x, y, generator=seeded())
    far = correct(model(found.x_adv), y)
    assert far.any()
    assert not far.all()
    assert found.importance.tolist() == (~far).double().tolist()


@pytest.mark.parametrize("delta", [0.05, 0.1, 0.2])
def test_costs_little_more_than_pgd(delta):
    """Counted at the network: at most 1.3 times a training step of PGD-AT with as many steps."""
    model, (x, y) = fitted(), digits(256, start=300)
    counts = []
    pgd = WPGD(p=INF, norm=INF, delta=delta, steps=8, random_start=True)
    ours = (BoundaryAttack(p=2, norm=INF, delta=delta, steps=8, marginal=reach) for reach in (None, Fixed(2 * delta)))
    for attack in (pgd, *ours):
        with PassCounter(model) as passes:
            attack(model, x, y, generator=seeded())
        # A training step adds a forward and a backward pass of its own.
        counts.append((passes.forward + passes.backward) / len(x) / 2 + 1)
    assert counts[0] == 9
    assert max(counts[1:]) <= 1.3 * counts[0]
    assert min(counts[1:]) > 1.5


def test_steps_stop_at_the_flip():
    """An image that has flipped is not looked at again, but for the bisection."""
    model, x, y, _, _ = two_classes()
    easy = BoundaryAttack(p=2, norm=INF, delta=0.4, marginal=Fixed(0.4), steps=8, bisections=2, random_start=0)
    with PassCounter(model) as passes:
        found = easy(model, x, y)
    right = int(correct(model(x), y).sum())
    assert found.terms["flipped"] == pytest.approx(right / len(x))
    assert passes.backward < 4 * right
    assert passes.forward <= len(x) + passes.backward + 3 * right


def test_bad_input():
    for options, message in (
        ({"steps": 0}, "attack.steps=0"),
        ({"bisections": -1}, "attack.bisections=-1"),
        ({"step_size": 0}, "step_size=0"),
        ({"random_start": -1}, "attack.random_start=-1"),
        ({"random_start": math.nan}, "attack.random_start=nan"),
        ({"random_start": INF}, "attack.random_start=inf"),
        ({"beyond": -1}, "attack.beyond=-1"),
        ({"beyond": math.nan}, "attack.beyond=nan"),
        ({"p": 0.5}, "attack.p=0.5"),
    ):
        with pytest.raises(UserError, match=message):
            BoundaryAttack(**{"p": 2, "norm": INF, "delta": 0.1, **options})
    for make in (lambda: Fixed(0), lambda: Fixed(-1), lambda: DualAscent(rate=-1), lambda: DualAscent(limit=2)):
        with pytest.raises(UserError, match="choose"):
            make()
    for distance in (-0.1, math.inf, math.nan, "abc"):
        with pytest.raises(UserError, match=f"attack.marginal.distance='?{distance}"):
            Fixed(distance)
    with pytest.warns(UserWarning, match=r"attack\.marginal\.distance=0\.3 is less than attack\.delta=1:"):
        BoundaryAttack(p=2, norm=2, delta=1, marginal=Fixed(0.3), steps=1)(fitted(), *digits(4))
    with pytest.raises(UserError, match=r"safety=0\.5.*safety >= 1"):
        DualAscent(safety=0.5)


def test_marginal_distance_survives_a_checkpoint():
    first, second = (DistributionalAdversary(BoundaryAttack(p=2, norm=INF, delta=0.1, steps=2)) for _ in range(2))
    model, (x, y) = fitted(), digits(64, start=300)
    for seed in range(5):
        first.attack(model, x, y, generator=seeded(seed))
    assert first.attack.marginal.reach(first.ball, x) > 0.1
    second.load_state_dict(first.state_dict())
    reached = [part.attack(model, x, y, generator=seeded(9)) for part in (first, second)]
    assert torch.equal(reached[0].x_adv, reached[1].x_adv)
    assert reached[0].terms["reach"] == reached[1].terms["reach"]


@pytest.mark.parametrize("p", [1, 2, "inf"])
def test_worst_acc_is_the_knapsack_over_the_whole_set(p):
    distances = MinimalDistance(norm=INF, steps=4)
    judge = DistributionalAdversary(
        BoundaryAttack(p=p, norm=INF, delta=0.05), val_attack=None, first_order=None, distances=distances
    )
    module = classifier(fitted())
    logged = trainer([judge]).validate(module, loader(41, 16, start=300), verbose=False)[0]
    x, y = digits(41, start=300)
    parts = [distances(module.model, x[rows], y[rows]).distances for rows in torch.arange(41).split(16)]
    curve = RobustnessCurve(torch.cat(parts).numpy())
    assert set(logged) == {"val/clean_acc", "val/worst_acc", "val/worst_ratio"}
    expected = curve.accuracy(0.05, float(p))
    assert 0.05 < expected < curve.clean_accuracy
    assert logged["val/worst_acc"] == pytest.approx(expected, abs=2e-3)
    assert logged["val/worst_ratio"] == pytest.approx(expected / curve.clean_accuracy, abs=4e-3)


def test_worst_acc_pools_the_validation_attack():
    """Never above the accuracy any attack that was run has left."""
    weak = MinimalDistance(norm=INF, steps=1)
    alone, pooled = (
        trainer([adversary(p=p, delta=0.05, distances=weak, **options)]).validate(
            classifier(fitted()), loader(40, 40, start=300), verbose=False
        )[0]
        for p, options in ((2, {"val_attack": None}), (2, {}))
    )
    assert pooled["val/worst_acc"] <= min(pooled["val/adv_acc"], alone["val/worst_acc"]) + 1e-6


def test_metric_leaves_out_padding():
    metric = WorstCaseAccuracy(WassersteinBall(INF, INF, 0.5))
    metric.update(torch.tensor([0.0, 0.4, 0.6, 0.1]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert metric.compute()["worst_acc"] == pytest.approx(1 / 3)


def test_distances_in_another_norm_are_refused():
    with pytest.raises(UserError, match="l_2 norm say nothing about an l_inf ball"):
        adversary(distances=MinimalDistance(norm=2))

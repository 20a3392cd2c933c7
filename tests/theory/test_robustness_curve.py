import math
import sys
from functools import lru_cache

import matplotlib.pyplot as plt
import numpy as np
import ot
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import reference_images, reference_network
from scipy.optimize import linprog
from torch import nn

from wdro_train.attacks import MinimalDistance
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError

INF = math.inf
ORDERS = [1, 1.5, 2, 7]


def sample(count=60, seed=0, misclassified=0.2, unflipped=0.1):
    """Distances with zeros, infinities and ties."""
    rng = np.random.default_rng(seed)
    d = np.round(rng.gamma(2.0, 0.5, count), 1) + 0.05
    kind = rng.random(count)
    d[kind < misclassified] = 0
    d[kind > 1 - unflipped] = INF
    return d


def primal(d, delta, p):
    """max sum a / N over 0 <= a <= 1 with sum a d^p / N <= delta^p, by linear programming."""
    reachable = np.isfinite(d)
    cost = d[reachable] ** p
    found = linprog(-np.ones(cost.size), A_ub=cost[None], b_ub=[d.size * delta**p], bounds=(0, 1))
    return -found.fun / d.size


def dual(d, delta, p, count=200_001):
    """min over a fine grid of lambda of lambda delta^p + mean (1 - lambda d^p)_+; never below the primal."""
    with np.errstate(invalid="ignore"):
        grid = np.linspace(0, 30, count)[:, None]
        finite = d[np.isfinite(d)] ** p
        return (grid[:, 0] * delta**p + np.maximum(1 - grid * finite, 0).sum(1) / d.size).min()


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("delta", [0.05, 0.3, 0.8, 5.0])
def test_primal_and_dual(p, delta):
    d = sample()
    worst = RobustnessCurve(d).worst_case(delta, p)
    error = 1 - worst.accuracy
    assert error == pytest.approx(primal(d, delta, p), abs=1e-8)
    assert worst.dual == pytest.approx(error, abs=1e-10)
    assert worst.accuracy == RobustnessCurve(d).accuracy(delta, p)
    if p < 7:  # where lambda is on the grid
        assert error <= dual(d, delta, p, 20_001) + 1e-12
        assert error == pytest.approx(dual(d, delta, p, 20_001), abs=2e-3)
    # lambda attains the dual, and is the slope of the error in delta^p.
    finite = d[np.isfinite(d)]
    value = worst.multiplier * delta**p + np.maximum(1 - worst.multiplier * finite**p, 0).sum() / d.size
    assert value == pytest.approx(error, abs=1e-10)
    more = (delta**p + 1e-9) ** (1 / p)
    assert (worst.accuracy - RobustnessCurve(d).accuracy(more, p)) / 1e-9 == pytest.approx(
        worst.multiplier, rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("delta", [0.0, 0.05, 0.3, 0.8, 5.0])
def test_weights(p, delta):
    d = sample()
    worst = RobustnessCurve(d).worst_case(delta, p)
    assert ((worst.weights >= 0) & (worst.weights <= 1)).all()
    assert worst.weights.mean() == pytest.approx(1 - worst.accuracy, abs=1e-12)
    assert ((worst.weights > 0) & (worst.weights < 1)).sum() <= 1
    assert (worst.weights[np.isinf(d)] == 0).all()
    assert (worst.weights[d == 0] == 1).all()
    moved = worst.weights > 0
    cost = ((worst.weights * np.where(moved, d, 0) ** p).mean()) ** (1 / p)
    assert worst.spent == pytest.approx(cost, rel=1e-12)
    assert cost <= delta * (1 + 1e-12)
    if worst.multiplier > 0:
        assert cost == pytest.approx(delta, rel=1e-12)
        assert worst.marginal_distance**-p == pytest.approx(worst.multiplier)
        assert (d[worst.weights == 1] <= worst.marginal_distance).all()
        assert (d[worst.weights == 0] >= worst.marginal_distance).all()


@pytest.mark.parametrize("delta", [0.0, 0.25, 0.5, 9.0])
def test_pointwise(delta):
    d = np.array([0.0, 0.25, 0.5, 0.5, 1.0, INF])
    curve = RobustnessCurve(d)
    worst = curve.worst_case(delta, INF)
    assert worst.accuracy == pytest.approx(np.mean(d > delta), abs=1e-15)
    assert worst.weights.tolist() == (d <= delta).astype(float).tolist()
    assert worst.spent == max(d[d <= delta])
    assert worst.spent <= delta


def test_huge_order_is_nearly_pointwise():
    d = sample()
    curve = RobustnessCurve(d)
    for delta in (0.31, 0.8, 1.23):
        # The cheapest images raised to a huge power cost nothing: at most N images cost delta^p each.
        assert curve.accuracy(delta, 1e4) == pytest.approx(curve.accuracy(delta * (1 + 1e-3), INF), abs=1 / d.size)
        worst = curve.worst_case(delta, 1e4)
        assert worst.dual == pytest.approx(1 - worst.accuracy, abs=1e-10)
        assert worst.spent <= delta * (1 + 1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
@pytest.mark.parametrize("p", [1, 2, 40])
def test_units_do_not_matter(p, scale):
    d = sample()
    one, other = RobustnessCurve(d), RobustnessCurve(scale * d)
    for delta in (1e-3, 0.4, 1.0):
        a, b = one.worst_case(delta, p), other.worst_case(scale * delta, p)
        assert b.accuracy == pytest.approx(a.accuracy, abs=1e-12)
        assert b.dual == pytest.approx(1 - b.accuracy, abs=1e-10)
        assert b.spent == pytest.approx(scale * a.spent, rel=1e-9)
        assert other.budget(0.5, p) == pytest.approx(scale * one.budget(0.5, p), rel=1e-9)


def test_nothing_to_lose():
    curve = RobustnessCurve([0.0, 0.0, 0.0])
    for p in (1, 2, INF):
        assert curve.accuracy(0.0, p) == curve.accuracy(3.0, p) == 0
        assert curve.budget(0.0, p) == 0
        assert curve.worst_case(1.0, p).spent == 0
        assert curve.worst_case(1.0, p).dual == 1


def test_nothing_to_win():
    curve = RobustnessCurve([INF, INF])
    for p in (1, 2, INF):
        assert curve.accuracy(1e300, p) == 1
        assert curve.budget(0.99, p) == INF
        assert curve.budget(1.0, p) == 0
        worst = curve.worst_case(1.0, p)
        assert (worst.dual, worst.spent, worst.weights.sum()) == (0, 0, 0)


def test_one_image():
    curve = RobustnessCurve([2.0])
    for p in (1, 2, 3):
        assert curve.accuracy(1.0, p) == pytest.approx(1 - 0.5**p)
        assert curve.budget(0.5, p) == pytest.approx(2 * 0.5 ** (1 / p))
    assert curve.accuracy(1.999, INF) == 1
    assert curve.accuracy(2.0, INF) == curve.accuracy(2.0, 2) == 0


@pytest.mark.parametrize("p", [*ORDERS, INF])
def test_budget_is_the_inverse(p):
    curve = RobustnessCurve(sample())
    lowest = curve.accuracy(1e6, p)
    targets = np.linspace(lowest, 1, 57)
    for target in targets:
        delta = curve.budget(target, p)
        assert curve.accuracy(delta * (1 + 1e-9), p) <= target + 1e-9
        if delta > 0:
            assert curve.accuracy(delta * (1 - 1e-6), p) > target - 1e-9
            if p < INF:
                assert curve.accuracy(delta, p) == pytest.approx(target, abs=1e-9)
    assert curve.budget(lowest - 0.01, p) == INF
    assert curve.budget(curve.clean_accuracy, p) == 0


@pytest.mark.parametrize("p", [*ORDERS, INF])
def test_pool_is_below_its_members(p):
    members = [sample(seed=seed) for seed in range(3)]
    pooled = RobustnessCurve.pool(members)
    for delta in (0.0, 0.2, 0.7, 2.0):
        assert pooled.accuracy(delta, p) <= min(RobustnessCurve(d).accuracy(delta, p) for d in members) + 1e-12
    assert (pooled.distances == np.min(members, axis=0)).all()
    assert len(pooled) == 60


numbers = st.one_of(st.just(0.0), st.just(INF), st.floats(1e-3, 10))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(numbers, min_size=1, max_size=12),
    st.floats(0, 10),
    st.floats(0, 10),
    st.floats(1, 20),
    st.floats(1, 20),
)
def test_accuracy_falls_in_the_radius_and_rises_in_the_order(d, delta, further, p, q):
    curve = RobustnessCurve(d)
    low, high = sorted((p, q))
    assert curve.accuracy(delta + further, low) <= curve.accuracy(delta, low) + 1e-12
    assert curve.accuracy(delta, low) <= curve.accuracy(delta, high) + 1e-9
    assert curve.accuracy(delta, high) <= curve.accuracy(delta, INF) + 1e-9
    assert 0 <= curve.accuracy(delta, low) <= curve.clean_accuracy + 1e-12
    worst = curve.worst_case(delta, low)
    assert worst.dual == pytest.approx(1 - worst.accuracy, abs=1e-10)
    assert worst.spent <= delta * (1 + 1e-9)
    assert curve.accuracy(curve.budget(worst.accuracy, low) * (1 + 1e-9), low) <= worst.accuracy + 1e-6


SHARES = st.floats(0, 1) | st.sampled_from([1 - 1e-13, 1 - 1e-15, 1e-300, math.nextafter(1, 0), 0.5, 1.0])


@settings(max_examples=300, deadline=None)
@given(
    distances=st.lists(st.floats(0, 5) | st.just(INF), min_size=1, max_size=9),
    share=SHARES,
    p=st.sampled_from([*ORDERS, INF]),
)
@example(distances=[5e-324], share=0.5, p=1)
@example(distances=[5e-324] * 3 + [1e-323], share=0.6, p=2)
def test_budget_of_any_share(distances, share, p):
    """For every share, however near 0 or 1: with the budget the accuracy is there, and with less it is not."""
    curve = RobustnessCurve(distances)
    budget = curve.budget(share, p)
    assert budget >= 0
    assert budget == INF or curve.accuracy(budget * (1 + 1e-9), p) <= share + 1e-6
    if 1e-3 < budget < INF:
        assert curve.accuracy(budget * (1 - 1e-6), p) >= min(share, curve.clean_accuracy) - 1e-9
    assert curve.budget(1.0, p) == 0


@pytest.mark.parametrize("p", [1, 2, INF])
def test_budget_of_a_share_just_below_one(p):
    curve = RobustnessCurve([1.0, 2.0, 3.0])
    assert curve.budget(1 - 1e-13, p) <= 1.0
    assert curve.budget(1 - 1e-13, INF) == 1.0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda c: RobustnessCurve([]), "distances"),
        (lambda c: RobustnessCurve([-1.0]), "distances"),
        (lambda c: RobustnessCurve([math.nan]), "distances"),
        (lambda c: c.accuracy(-1, 2), "delta=-1"),
        (lambda c: c.accuracy(math.nan, 2), "delta=nan"),
        (lambda c: c.accuracy(math.inf, 2), "delta=inf"),
        (lambda c: c.accuracy(1, 0.5), "p=0.5"),
        (lambda c: c.budget(1.5, 2), "accuracy=1.5"),
        (lambda c: c.band(0.6), "alpha=0.6"),
        (lambda c: c.band(0.0), "alpha=0"),
        (lambda c: c.band(0.1, "outer"), "sided='outer'"),
        (lambda c: c.shifted(1, -1, 2), "epsilon=-1"),
    ],
)
def test_bad_input(call, word):
    with pytest.raises(UserError, match=word):
        call(RobustnessCurve([1.0]))


def linear_problem(count=1000, side=6):
    """Two classes, a hyperplane through the middle of the box, images near the middle."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 2))
    with torch.no_grad():
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
    x = 0.5 + 0.05 * torch.randn(count, 1, side, side).clamp(-2, 2)
    y = model(x).argmax(1)
    y[::9] = 1 - y[::9]
    return model, x, y


@pytest.mark.parametrize(("s", "dual"), [(INF, 1), (2, 2), (1, INF)])
@pytest.mark.parametrize("p", [1, 1.5, 2, INF])
def test_linear_model(s, dual, p):
    model, x, y = linear_problem()
    w = (model[1].weight[1] - model[1].weight[0]).double()
    bias = (model[1].bias[1] - model[1].bias[0]).double()
    signed = (2 * y - 1) * (x.double().flatten(1) @ w + bias)  # > 0 on the correct side
    d = (signed / torch.linalg.vector_norm(w, ord=dual)).clamp_min(0).detach().numpy()
    found = MinimalDistance(norm=s, steps=10)(model, x, y)
    curve = RobustnessCurve(found.distances)
    top = np.quantile(d, 0.9)
    deltas = np.linspace(0, top, 15)[1:] * (1 + 1e-3)  # not at a distance, where the pointwise curve jumps
    closed = [np.mean(d > r) if p == INF else 1 - primal(d, r, p) for r in deltas]
    assert max(closed) - min(closed) > 0.2
    assert np.abs(curve.accuracies(deltas, p) - closed).max() <= 1.001e-3
    assert curve.clean_accuracy == pytest.approx(np.mean(d > 0))


@pytest.mark.parametrize("s", [INF, 2, 1])
@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_worst_case_distribution_is_in_the_ball(s, p):
    """Q that moves the share a_i of image i's mass to its boundary point: W_p(P, Q) by optimal transport."""
    x, y = (part[:80] for part in reference_images())
    model = reference_network("adversarial")
    found = MinimalDistance(norm=s, steps=10)(model, x, y)
    curve = RobustnessCurve(found.distances)
    delta = curve.budget(curve.clean_accuracy / 2, p) * 1.003
    worst = curve.worst_case(delta, p)
    n = len(x)
    movers = np.flatnonzero(worst.weights)
    mass = worst.weights[movers] / n
    stays = np.full(n, 1 / n)
    stays[movers] -= mass
    points = torch.cat([x, found.x_adv[movers]]).double().flatten(1)
    labels = torch.cat([y, y[movers]])
    weights = np.r_[stays, mass]
    assert weights.min() >= -1e-15
    assert weights.sum() == pytest.approx(1)

    weights = np.maximum(weights, 0)
    exact = "donot_use_mm_for_euclid_dist"  # else an image is 1e-7 away from itself
    cost = torch.cdist(x.double().flatten(1), points, p=s, compute_mode=exact).numpy() ** p
    cost[y.numpy()[:, None] != labels.numpy()] = 1e9  # labels cannot move
    spent = ot.emd2(np.full(n, 1 / n), weights / weights.sum(), cost) ** (1 / p)
    assert spent <= delta * (1 + 1e-6)
    assert spent > 0.5 * delta

    flips = ~correct(model(points.float().view(-1, *x.shape[1:])), labels)
    assert 1 - (weights * flips.numpy()).sum() == pytest.approx(worst.accuracy, abs=1e-9)
    assert 0.3 * curve.clean_accuracy < worst.accuracy < 0.7 * curve.clean_accuracy


@lru_cache
def population():
    x, y = (part[:300] for part in reference_images())
    return MinimalDistance(norm=INF, steps=15)(reference_network("adversarial"), x, y).distances.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("sided", ["two", "lower", "upper"])
def test_band_covers_the_whole_curve(sided):
    d = population()
    alpha, n, repeats = 0.1, 100, 200
    rng = np.random.default_rng(0)
    truth = RobustnessCurve(d)
    grids = {p: np.linspace(0, truth.budget(0.02, p), 60) for p in (1, 2, 10)}
    grids[INF] = np.unique(d)
    grids = {p: (grid, truth.accuracies(grid, p)) for p, grid in grids.items()}
    failures, gaps = 0, []
    for _ in range(repeats):
        curve = RobustnessCurve(rng.choice(d, n))
        band = curve.band(alpha, sided)
        errors = [curve.accuracies(grid, p) - exact for p, (grid, exact) in grids.items()]
        above = max(error.max() for error in errors)
        below = max((-error).max() for error in errors)
        gap = {"two": max(above, below), "lower": above, "upper": below}[sided]
        failures += gap > band.width
        gaps.append(gap)
    # No more often than the level says, allowing for the 200 draws; and the band is no idle one.
    assert failures <= alpha * repeats + 2 * math.sqrt(alpha * (1 - alpha) * repeats)
    assert np.quantile(gaps, 0.9) > 0.7 * band.width


@pytest.mark.parametrize("sided", ["two", "lower", "upper"])
@pytest.mark.parametrize("hidden", [0.0, 0.5, 1.0])
def test_ends_of_the_band_hold_for_what_attacks_miss(sided, hidden):
    """Upper end from attacks, lower end from certificates, whatever share of the flips no attack finds."""
    d = population()
    rng = np.random.default_rng(1)
    truth, grid = RobustnessCurve(d), np.linspace(0, 0.3, 30)
    drawn = rng.integers(len(d), size=5000)
    found = np.where(rng.random(5000) < hidden, INF, d[drawn] * 1.1)
    attacked, certified = RobustnessCurve(np.where(d[drawn] > 0, found, 0)), RobustnessCurve(d[drawn] * 0.7)
    band = attacked.band(0.01, sided)
    for p in (1, 2, INF):
        for exact, high, low in zip(
            *(curve.accuracies(grid, p) for curve in (truth, attacked, certified)), strict=True
        ):
            assert band.lower_end(low) <= exact <= band.upper_end(high)
            assert 0 <= band.lower_end(low) <= low
            assert high <= band.upper_end(high) <= 1
    assert band.upper_end(0.5) == (1 if sided == "lower" else 0.5 + band.width)
    assert band.lower_end(0.5) == (0 if sided == "upper" else 0.5 - band.width)


def test_width_of_the_band():
    curve = RobustnessCurve(np.ones(10_000))
    assert curve.band(0.05, "lower").width == pytest.approx(0.01224, abs=1e-5)
    assert curve.band(0.05, "two").width == pytest.approx(math.sqrt(math.log(40) / 20_000))
    assert curve.band(0.05).level == 0.95
    both = curve.band(0.05, "two")
    assert (both.lower_end(0.5), both.upper_end(0.5)) == pytest.approx((0.5 - both.width, 0.5 + both.width))
    assert curve.band(0.05, "lower").upper_end(0.5) == 1
    assert curve.band(0.05, "upper").lower_end(0.5) == 0
    assert (both.lower_end(0.001), both.upper_end(0.999)) == (0, 1)


def test_shifted_bounds_every_law_within_epsilon():
    """W_p(P^, P) <= eps implies A_delta(P) >= A_{delta + eps}(P^): in one dimension, where P is P^ moved."""
    d = sample(unflipped=0)
    rng = np.random.default_rng(1)
    for p in (1, 2, INF):
        moves = rng.normal(size=d.size)
        power = np.abs(moves).max() if p == INF else np.mean(np.abs(moves) ** p) ** (1 / p)
        epsilon = 0.2
        moved = RobustnessCurve(np.maximum(d + moves * epsilon / power, 0))
        for delta in (0.1, 0.5, 1.0):
            assert moved.accuracy(delta, p) >= RobustnessCurve(d).shifted(delta, epsilon, p) - 1e-12
    assert RobustnessCurve(d).shifted(0.3, 0.2, 2) == RobustnessCurve(d).accuracy(0.5, 2)


def test_repr_says_what_one_wants_to_know():
    curve = RobustnessCurve([0.0, 1.0, 2.0, INF])
    assert repr(curve) == (
        "RobustnessCurve(4 images, clean accuracy 0.7500, halved at radius 0.866 under W_2 and at 2 under W_inf, "
        "1 image without a flip)"
    )
    halved = curve.budget(0.375, 2)
    assert curve.accuracy(halved, 2) == pytest.approx(0.375)
    assert "halved at radius inf under W_2" in repr(RobustnessCurve([INF, INF]))
    assert "clean accuracy 0.0000, halved at radius 0 under W_2" in repr(RobustnessCurve([0.0]))


def test_radii_and_orders_as_people_type_them():
    curve = RobustnessCurve(sample())
    assert curve.accuracy("8/255", "inf") == curve.accuracy(8 / 255, INF)
    assert curve.worst_case("1/2", "2").accuracy == curve.accuracy(0.5, 2)
    assert curve.budget(0.5, "inf") == curve.budget(0.5, INF)
    assert curve.shifted("1/2", 0.1, "2") == curve.accuracy(0.6, 2)
    with pytest.raises(UserError, match="p='two' is not a number"):
        curve.accuracy(0.1, "two")


def test_as_a_table():
    curve = RobustnessCurve(sample())
    table = curve.to_dict(["0", "1/2", 0.75], orders=[2, "inf"])
    assert table["p"] == [2, 2, 2, INF, INF, INF]
    assert table["delta"] == [0, 0.5, 0.75] * 2
    assert table["accuracy"] == [curve.accuracy(d, p) for p, d in zip(table["p"], table["delta"], strict=True)]
    whole = curve.to_dict()
    assert len(whole["delta"]) == 3 * 41
    assert max(whole["delta"]) == max(d for d in curve.distances if d < INF)
    assert RobustnessCurve([0.0, INF]).to_dict()["delta"][-1] == 1


def test_as_a_frame(monkeypatch):
    curve = RobustnessCurve(sample())
    frame = curve.to_frame([0.5], orders=[1, 2])
    assert frame.to_dict("list") == curve.to_dict([0.5], orders=[1, 2])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pandas is not installed; run pip install 'wdro-train\[frames\]'"):
        curve.to_frame()


def test_drawn():
    curve = RobustnessCurve(sample())
    axes = curve.plot(orders=["2", "inf"])
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == ["$W_{2}$", r"$W_{\infty}$"]
    assert lines[0].get_ydata().tolist() == curve.accuracies(lines[0].get_xdata(), 2).tolist()
    assert curve.plot(ax=axes) is axes
    axes.figure.canvas.draw()
    plt.close(axes.figure)

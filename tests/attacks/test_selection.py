import math
from functools import partial
from itertools import combinations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from oracles import on_ranks, random_batch, reference_images, reference_network, small_network

from wdro_train.attacks import WFGSM, WPGD, Pool
from wdro_train.attacks.selection import affordable_price, make_keeper
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import per_image
from wdro_train.theory.losses import correct
from wdro_train.utils.distributed import LocalReducer
from wdro_train.utils.errors import UserError

INF = math.inf


def most_flips(prices, p, delta):
    """The largest number of flips that fit into the ball, over all subsets."""
    budget = len(prices) * delta**p * (1 + 1e-5)
    payable = [v for v in prices if math.isfinite(v)]
    return max(k for k in range(len(payable) + 1) for c in combinations(payable, k) if sum(v**p for v in c) <= budget)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.just(0.0), st.just(INF), st.floats(0.01, 3)), min_size=1, max_size=8),
    st.sampled_from([1.0, 1.5, 2.0, 5.0]),
    st.floats(0.01, 2),
)
def test_cheapest_first_solves_the_integral_knapsack(prices, p, delta):
    paid = [v for v in prices if 0 < v < INF]
    assume(len(set(paid)) == len(paid))  # equal prices stand or fall together
    total = sum(sorted(v**p for v in paid)) / (len(prices) * delta**p)
    assume(abs(total - 1) > 1e-4)
    price = affordable_price(
        WassersteinBall(p, 2, delta),
        torch.tensor(prices, dtype=torch.float64),
        torch.ones(len(prices)).double(),
        LocalReducer(),
    )
    assert sum(v <= price for v in prices) == most_flips(prices, p, delta)


def test_flips_that_spend_delta_up_to_rounding_are_affordable():
    prices = torch.tensor([0.1, 0.1]).double() * (1 + 5e-7)
    for p in (2, INF):
        assert (prices <= affordable_price(WassersteinBall(p, 2, 0.1), prices, torch.ones(2), LocalReducer())).all()
        assert affordable_price(WassersteinBall(p, 2, 0.0999), prices, torch.ones(2), LocalReducer()) < 0.1


@pytest.mark.parametrize("p", [1.5, INF])
def test_affordable_price_ignores_padding_and_ranks(p):
    prices, ball = torch.rand(30, generator=torch.Generator().manual_seed(0)).double(), WassersteinBall(p, 2, 0.4)
    expected = affordable_price(ball, prices, torch.ones(30), LocalReducer())
    padded = torch.cat([prices, torch.zeros(6).double()])
    weight = (torch.arange(36) < 30).double()
    assert affordable_price(ball, padded, weight, LocalReducer()) == expected

    def run(reducer, _):
        return affordable_price(ball, padded[reducer.rank :: 3], weight[reducer.rank :: 3], reducer)

    assert on_ranks(3, run, torch.nn.Identity()) == [expected] * 3


def test_equal_prices_stand_or_fall_together():
    prices = torch.tensor([0.0, 0.5, 0.5, 0.5]).double()
    price = affordable_price(WassersteinBall(2, 2, 0.4), prices, torch.ones(4), LocalReducer())
    assert price == 0  # two of the three would fit


keeper_of = partial(make_keeper, model=torch.nn.Identity())  # which no keeper here asks


def accuracy(model, x, y):
    return correct(model(x), y).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.5, 2.0, INF])
@pytest.mark.parametrize("norm", [2, INF])
@pytest.mark.parametrize("loss", ["ce", "redlr"])
def test_cheapest_is_the_strongest_choice(p, norm, loss):
    x, y = (v[:150] for v in reference_images())
    model = reference_network("adversarial")
    options = {
        "p": p,
        "norm": norm,
        "delta": 1.0 if norm == 2 else 0.1,
        "loss": loss,
        "steps": 8,
        "random_start": False,
    }
    results = {k: WPGD(**options, keep=k)(model, x, y) for k in ("last", "best", "cheapest", "nearest")}
    ball = WassersteinBall(p, norm, options["delta"])
    left = {}
    for name, result in results.items():
        left[name] = accuracy(model, result.x_adv, y)
        assert ball.spent(result.distances) <= ball.delta * (1 + 1e-6)
    for name in ("best", "cheapest", "nearest"):
        assert torch.equal(correct(results[name].adv_logits, y), correct(model(results[name].x_adv), y))
    assert left["nearest"] <= left["cheapest"] <= left["best"] <= left["last"]
    assert left["best"] < accuracy(model, x, y) - 0.04
    for name in ("cheapest", "nearest"):
        moved = results[name].distances > 0
        assert not correct(results[name].adv_logits, y)[moved].any()  # no budget on images that do not flip


@pytest.mark.parametrize("norm", [1.5, 2, INF])
@pytest.mark.parametrize("random_start", [False, True])
def test_flips_are_brought_back_to_the_boundary(norm, random_start):
    """Where one long step overshoots, a point nearer by 2^-5 of the way of the step is no flip."""
    x, y = random_batch(40)
    model = small_network()
    options = {"p": 2, "norm": norm, "delta": 2.0, "steps": 1, "step_size": 3, "random_start": random_start}
    first, back = (
        WPGD(**options, keep=keep)(model, x, y, generator=torch.Generator().manual_seed(0))
        for keep in ("cheapest", "nearest")
    )
    moved = ((first.distances > 0) & (back.distances > 0)).nonzero().squeeze(1)
    assert len(moved) > 5
    share = back.distances[moved] / first.distances[moved]
    torch.testing.assert_close(share * 32, (share * 32).round(), atol=1e-3, rtol=0)
    assert (share < 1).float().mean() > 0.5
    short = per_image(share - 1 / 32, x[moved]) * (first.x_adv[moved] - x[moved])
    assert correct(model(x[moved] + short), y[moved]).all()
    assert torch.equal(correct(back.adv_logits, y), correct(model(back.x_adv), y))


class RoundsByBatch(torch.nn.Module):
    """Kernels round otherwise for other numbers of images; here by much."""

    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, x):
        logits = self.network(x)
        return logits + 2e-3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(len(x)))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("delta", [0.05, 0.1, 0.2])
def test_no_image_is_paid_for_that_its_own_logits_call_correct(steps, delta):
    x, y = random_batch(40)
    result = WPGD(p=2, norm=2, delta=delta, steps=steps, keep="nearest", random_start=False)(RoundsByBatch(), x, y)
    assert not correct(result.adv_logits, y)[result.distances > 0].any()


def test_at_p_inf_nothing_is_brought_back():
    x, y = random_batch(40)
    model, options = small_network(), {"p": INF, "norm": 2, "delta": 1.0, "steps": 4, "random_start": False}
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    try:
        results = []
        for keep in ("cheapest", "nearest"):
            seen.clear()
            results.append((WPGD(**options, keep=keep)(model, x, y).x_adv, list(seen)))
    finally:
        handle.remove()
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_bringing_back_looks_at_each_flip_once():
    x, y = random_batch(40)
    model = small_network()
    y = model(x).argmax(1)
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    try:
        options = {"p": 2, "norm": 2, "delta": 2.0, "steps": 4, "random_start": False}
        WPGD(**options, keep="cheapest")(model, x, y)
        without = sum(seen)
        seen.clear()
        attack = WPGD(**options, keep="nearest")
        attack(model, x, y)
    finally:
        handle.remove()
    most = 6 * len(x)
    assert without < sum(seen) <= without + most


def test_bringing_back_needs_images_that_are_judged_alone():
    with pytest.raises(UserError, match=r"attack\.keep='nearest' .* choose attack\.batch_norm=eval"):
        WPGD(p=2, norm=2, delta=1, keep="nearest", batch_norm="train")


def test_best_is_the_minimum_over_iterates():
    x, y = random_batch(60)
    model, seen = small_network(), []

    def record(logits, labels):
        seen.append(((~correct(logits, labels)).sum().item(), torch.nn.functional.cross_entropy(logits, labels).item()))
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    result = WPGD(p=2, norm=2, delta=0.5, loss=record, steps=6, step_size=12, keep="best", random_start=False)(
        model, x, y
    )
    assert len(seen) == 7
    wrong = (~correct(result.adv_logits, y)).sum().item()
    mean = torch.nn.functional.cross_entropy(result.adv_logits, y).item()
    assert (wrong, mean) == pytest.approx(max(seen), rel=1e-6)
    assert result.best_mean_loss.item() == pytest.approx(max(v for _, v in seen), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("p", [1.5, 2.0, INF])
def test_pool_is_at_least_as_strong_as_each_member(p):
    x, y = (v[:150] for v in reference_images())
    model = reference_network("adversarial")
    shared = {"p": p, "norm": "inf", "delta": 0.08}
    members = [
        WFGSM(**shared, loss="redlr"),
        WPGD(**shared, steps=6, keep="best", random_start=False),
        WPGD(**shared, steps=6, keep="cheapest", loss="dlr", random_start=False),
        WPGD(**shared, steps=6, random_start=True),
    ]
    alone = [accuracy(model, m(model, x, y, generator=torch.Generator().manual_seed(3)).x_adv, y) for m in members]
    pool = Pool(members)
    result = pool(model, x, y, generator=torch.Generator().manual_seed(3))
    assert accuracy(model, result.x_adv, y) <= min(alone)
    assert torch.equal(correct(result.adv_logits, y), correct(model(result.x_adv), y))
    assert pool.ball.spent(result.distances) <= 0.08 * (1 + 1e-6)


def test_images_that_were_wrong_go_back_to_where_they_were_free():
    """After a random start the noise on misclassified images costs budget and wins nothing."""
    x = torch.full((3, 1, 2, 2), 0.5)
    y, noise = torch.tensor([0, 0, 0]), x + 0.1
    keeper = keeper_of("cheapest", WassersteinBall(2, 2, 1), x, y, None, LocalReducer())
    keeper.offer(x, torch.eye(3)[[1, 0, 0]], torch.zeros(3))
    keeper.offer(noise, torch.eye(3)[[1, 1, 0]], torch.zeros(3))
    assert keeper.finished.tolist() == [True, True, False]
    assert torch.equal(keeper.hold(noise + 0.1), torch.stack([x[0], noise[1], noise[2] + 0.1]))


def test_flips_that_are_not_paid_for_stay_clean():
    x = torch.full((3, 1, 1, 1), 0.5)
    moved = x + torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1)
    keeper = keeper_of("cheapest", WassersteinBall(1, 2, 0.15), x, torch.zeros(3).long(), None, LocalReducer())
    right, wrong = torch.eye(3)[[0, 0, 0]], torch.eye(3)[[1, 1, 1]]
    keeper.offer(x, right, torch.zeros(3))
    keeper.offer(moved, wrong, torch.ones(3))
    assert torch.equal(keeper.choose(), torch.cat([moved[:2], x[2:]]))  # 0.1 + 0.2 <= 3 * 0.15 < 0.1 + 0.2 + 0.3
    assert torch.equal(keeper.logits, torch.cat([wrong[:2], right[2:]]))
    assert keeper.mean_loss == 1


def test_best_breaks_ties_by_mean_loss():
    x = torch.full((2, 1, 1, 1), 0.5)
    keeper = keeper_of("best", WassersteinBall(2, 2, 1), x, torch.zeros(2).long(), None, LocalReducer())
    half = torch.eye(3)[[0, 1]]
    for shift, loss in ((0.1, 1.0), (0.2, 3.0), (0.3, 2.0)):
        keeper.offer(x + shift, half, torch.full((2,), loss))
    assert torch.equal(keeper.choose(), x + 0.2)
    keeper.offer(x + 0.4, torch.eye(3)[[1, 1]], torch.zeros(2))
    assert torch.equal(keeper.choose(), x + 0.4)
    assert keeper.mean_loss == 3


def test_unknown_keep():
    x, y = random_batch(3)
    with pytest.raises(UserError, match=r"attack\.keep='all' is unknown; choose last, best, cheapest or nearest"):
        keeper_of("all", WassersteinBall(2, 2, 1), x, y, None, LocalReducer())

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import norm, power_mean

from wdro_train.attacks import WFGSM, WPGD
from wdro_train.objectives import FirstOrderPenalty
from wdro_train.theory import power_mean as moments
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.errors import UserError

INF = math.inf
NORMS = [1.0, 1.5, 2.0, 3.0, INF]
ORDERS = [1.5, 2.0, 3.0, INF]


@pytest.mark.parametrize(
    ("p", "s", "delta", "message"),
    [
        (0.5, 2, 0.1, r"attack\.p=0\.5 is not a Wasserstein order"),
        ("nan", 2, 0.1, r"attack\.p=nan is not a Wasserstein order"),
        (-INF, 2, 0.1, r"attack\.p=-inf"),
        (2, 0.5, 0.1, r"attack\.norm=0\.5 is not a norm"),
        (2, "nan", 0.1, r"attack\.norm=nan is not a norm"),
        (2, 2, -1, r"attack\.delta=-1 is not a radius"),
        (2, 2, "nan", r"attack\.delta=nan is not a radius"),
        (2, 2, INF, r"attack\.delta=inf is not a radius"),
        (2, 2, "big", r"attack\.delta='big' is not a number"),
    ],
)
def test_ball_refuses(p, s, delta, message):
    with pytest.raises(UserError, match=message):
        WassersteinBall(p, s, delta)


@pytest.mark.parametrize("first_order", [WFGSM, WPGD, FirstOrderPenalty])
def test_w1_is_a_ball_but_has_no_first_order_attack(first_order):
    assert WassersteinBall(1, 2, 0.1).q == INF
    with pytest.raises(UserError, match=r"p=1: the first-order worst case under W_1 is not unique .*steepest image"):
        first_order(p=1, norm=2, delta=0.1)


@pytest.mark.parametrize(("e", "dual"), [(1, INF), (1.5, 3), (2, 2), (3, 1.5), (INF, 1)])
def test_conjugate_orders(e, dual):
    assert WassersteinBall(e, 2, 0.1).q == pytest.approx(dual)


@pytest.mark.parametrize("p", ORDERS)
def test_shares_have_p_mean_one(p):
    g = torch.rand(50, generator=torch.Generator().manual_seed(2)).double() * 1e-20
    g[:5] = 0
    ball = WassersteinBall(p, 2, 1)
    shares = ball.shares(g, torch.tensor(power_mean(g, ball.q), dtype=torch.float64))
    assert power_mean(shares, p) == pytest.approx(1, rel=1e-9)
    assert (shares[:5] == 0).all()
    assert (ball.shares(torch.zeros(3), torch.tensor(0.0, dtype=torch.float64)) == 0).all()


@pytest.mark.parametrize("p", [1.0, *ORDERS])
def test_spent(p):
    d = torch.rand(20, generator=torch.Generator().manual_seed(3)).double()
    weight = (torch.arange(20) < 15).float()
    d[15:] = 1e9  # padding
    assert WassersteinBall(p, 2, 1).spent(d, weight).item() == pytest.approx(power_mean(d[:15], p), rel=1e-12)


def shrunk(ball, u, held):
    """The projection of W-PGD, from its two parts."""
    d = ball.ground.distances(u)
    rho = ball.shrinkage(moments.moment(d, 1.0 * ~held, ball.p), moments.moment(d, 1.0 * held, ball.p))
    return ball.ground.shrink(u, d, torch.where(held, d, rho * d)), rho.item()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    u=hnp.arrays(np.float64, (8, 5), elements=st.floats(-10, 10)),
    held=hnp.arrays(bool, 8),
    p=st.sampled_from([1.0, 1.5, 2.0, 7.0]),
    s=st.sampled_from(NORMS),
    delta=st.sampled_from([0.0, 1e-3, 1.0, 100.0]),
    held_scale=st.sampled_from([0.0, 0.03, 0.1, 1.0]),
)
def test_projection(u, held, p, s, delta, held_scale):
    ball, held = WassersteinBall(p, s, delta), torch.tensor(held)
    u = torch.tensor(u.round(3))
    u[held] *= held_scale * delta
    d = norm(u, s)
    d_held = (d[held] ** p).sum().item()
    v, rho = shrunk(ball, u, held)
    assert 0 <= rho <= 1
    assert torch.equal(v[held], u[held])
    if d_held > 8 * delta**p:  # held images alone are outside: nothing is left for the others
        assert norm(v[~held], s).sum() == pytest.approx(0, abs=1e-9)
        return
    assert power_mean(norm(v, s), p) <= delta * (1 + 1e-9)
    # the largest factor that fits, by bisection
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        fits = middle**p * (d[~held] ** p).sum().item() + d_held <= 8 * delta**p
        low, high = (middle, high) if fits else (low, middle)
    if d[~held].sum() > 1e-6:
        assert rho == pytest.approx(low, abs=1e-6)
    again, _ = shrunk(ball, v, held)
    torch.testing.assert_close(again, v, rtol=1e-9, atol=1e-12)

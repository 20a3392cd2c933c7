import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import conjugate, norm, power_mean

from wdro_train.attacks import WFGSM, WPGD
from wdro_train.objectives import FirstOrderPenalty
from wdro_train.theory import power_mean as moments
from wdro_train.theory.ball import WassersteinBall, image_norms
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number

INF = math.inf
NORMS = [1.0, 1.5, 2.0, 3.0, INF]
ORDERS = [1.5, 2.0, 3.0, INF]
finite = st.floats(-1e3, 1e3, width=32)
batches = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=finite)


@pytest.mark.parametrize(
    ("typed", "value"),
    [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("inf", INF), ("2", 2), (2, 2), (0.5, 0.5), ("1e-3", 1e-3)],
)
def test_parse_number(typed, value):
    assert parse_number(typed, "attack.delta") == value


@pytest.mark.parametrize("typed", ["eight", "", "1/0", "1/2/3", None, [2], "8:255"])
def test_parse_number_refuses(typed):
    with pytest.raises(UserError, match=r"attack\.delta=.* is not a number"):
        parse_number(typed, "attack.delta")


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


@pytest.mark.parametrize("s", NORMS)
def test_diameter_is_the_distance_of_opposite_corners(s):
    corners = torch.zeros(2, 1, 3, 4), torch.ones(2, 1, 3, 4)
    ball = WassersteinBall(2, s, 0.1)
    assert ball.distances(corners[1] - corners[0]).tolist() == pytest.approx([ball.diameter(corners[0])] * 2)


@pytest.mark.parametrize("first_order", [WFGSM, WPGD, FirstOrderPenalty])
def test_w1_is_a_ball_but_has_no_first_order_attack(first_order):
    assert WassersteinBall(1, 2, 0.1).q == INF
    with pytest.raises(UserError, match=r"p=1: the first-order worst case under W_1 is not unique .*steepest image"):
        first_order(p=1, norm=2, delta=0.1)


@pytest.mark.parametrize(("e", "dual"), [(1, INF), (1.5, 3), (2, 2), (3, 1.5), (INF, 1)])
def test_dual_exponents(e, dual):
    ball = WassersteinBall(e, e, 0)
    assert ball.q == pytest.approx(dual)
    assert ball.dual == pytest.approx(dual)
    assert conjugate(dual) == pytest.approx(e)


@pytest.mark.parametrize("s", [*NORMS, 1.05, 7.0])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_norms_at_every_scale(s, scale):
    u = (torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * scale).float()
    u[0] = 0
    torch.testing.assert_close(image_norms(u, s), norm(u.double() / scale, s) * scale, rtol=1e-5, atol=0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batches, st.sampled_from(NORMS), st.floats(-1e3, 1e3))
def test_norms_are_norms(a, s, c):
    u = torch.tensor(a)
    lengths = image_norms(u, s)
    assert ((lengths == 0) == (u.flatten(1) == 0).all(1)).all()
    torch.testing.assert_close(image_norms(c * u.double(), s), abs(c) * lengths, rtol=1e-5, atol=1e-30)
    assert (image_norms(u + u.flip(0), s) <= (lengths + lengths.flip(0)) * (1 + 1e-5)).all()


@pytest.mark.parametrize("s", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_direction_attains_the_dual_norm(s, scale):
    g = torch.randn(9, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    g[1] = g[1].sign()  # every coordinate ties
    g[2, 0, 0, :3] = torch.tensor([5.0, -5.0, 5.0])  # some tie
    g[3] = 0
    g = (g * scale).float()
    ball = WassersteinBall(2, s, 1)
    h = ball.direction(g)
    assert h.dtype == g.dtype
    assert h.shape == g.shape
    alive = torch.arange(9) != 3
    torch.testing.assert_close(norm(h, s)[alive], torch.ones(8).double(), rtol=1e-5, atol=0)
    assert (h[3] == 0).all()
    attained = (h.double() * (g.double() / scale)).flatten(1).sum(1)
    torch.testing.assert_close(attained, norm(g.double() / scale, conjugate(s)), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(ball.dual_norms(g), norm(g.double() / scale, conjugate(s)) * scale, rtol=1e-5, atol=0)


def test_direction_for_s1_splits_over_ties_only():
    h = WassersteinBall(2, 1, 1).direction(torch.tensor([[3.0, -3.0, 2.999, 0.0]]))
    torch.testing.assert_close(h, torch.tensor([[0.5, -0.5, 0.0, 0.0]]))


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
    d = ball.distances(u)
    rho = ball.shrinkage(moments.moment(d, 1.0 * ~held, ball.p), moments.moment(d, 1.0 * held, ball.p))
    return ball.shrink(u, d, torch.where(held, d, rho * d)), rho.item()


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


@pytest.mark.parametrize("s", NORMS)
def test_shrink_is_pointwise(s):
    """Far displacements end on the sphere, near ones stay where they are (the 2023 code pushed them out)."""
    u = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(4)).double()
    u[0] *= 1e-6
    u[1] = 0
    ball = WassersteinBall(INF, s, 0.3)
    radii = torch.full((6,), 0.3).double()
    v = ball.shrink(u, ball.distances(u), radii)
    assert torch.equal(v[:2], u[:2])
    torch.testing.assert_close(norm(v[2:], s), torch.full((4,), 0.3).double(), rtol=1e-6, atol=0)
    if s in (2.0, INF):  # scaling and clipping are the Euclidean projections there
        other = u + 0.05 * torch.randn_like(u)
        inside = ball.shrink(other, ball.distances(other), radii)
        assert (norm(u - v, 2) <= norm(u - inside, 2) + 1e-9).all()

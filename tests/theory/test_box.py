import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import Linear, conjugate, linear_value, norm, own_logit, power_mean
from scipy.optimize import brentq, linprog, minimize

from wdro_train.attacks import WFGSM, WPGD
from wdro_train.theory.box import ascend, climb, free_gradient, move, projected_step
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.sparse import sparse_step

INF = math.inf
NORMS = [1.0, 1.5, 2.0, 3.0, INF]


def grid(count=24, pixels=16, seed=0):
    """Images whose pixels are 0, 1/2 or 1, mostly on the boundary, and gradients of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 5, (count, 1, 4, pixels // 4), generator=generator).clamp(0, 4)
    x = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0])[x]
    lengths = 10 ** (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    return x, torch.randn(x.shape, generator=generator) * lengths


def test_free_gradient():
    x = torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0]])
    g = torch.tensor([[1.0, -1.0, 0.0, 1.0, -1.0, 1.0, -1.0, 0.0]])
    assert free_gradient(g, x).tolist() == [[1.0, 0.0, 0.0, 1.0, -1.0, 0.0, -1.0, 0.0]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.float32, (2, 6), elements=st.floats(0, 1, width=32)),
    hnp.arrays(np.float32, (2, 6), elements=st.floats(-2, 2, width=32)),
)
def test_move_never_goes_further_than_asked(x, u):
    x, u = torch.tensor(x), torch.tensor(u)
    moved = move(x, u)
    assert ((moved >= 0) & (moved <= 1)).all()
    exact = moved.double() - x.double()
    assert (exact.abs() <= u.double().abs() * (1 + 2**-23)).all()  # up to the rounding of moved - x itself
    assert (exact - (x.double() + u.double()).clamp(0, 1) + x.double()).abs().max() <= 2**-23


def best_gain(x, g, radius, s):
    """max <g, u> over ||u||_s <= radius and x + u in the box, by scipy."""
    x, g = x.double().numpy().ravel(), g.double().numpy().ravel()
    room = np.where(g > 0, 1 - x, x)
    g = np.abs(g)
    if s == 1:
        return -linprog(-g, A_ub=np.ones((1, g.size)), b_ub=[radius], bounds=list(zip(0 * room, room, strict=True))).fun
    if math.isinf(s):
        return (g * np.minimum(room, radius)).sum()
    found = minimize(
        lambda v: -g @ v,
        np.minimum(room, radius / g.size) / 2,
        jac=lambda v: -g,
        bounds=list(zip(0 * room, room, strict=True)),
        constraints={"type": "ineq", "fun": lambda v: radius**s - (v**s).sum(), "jac": lambda v: -s * v ** (s - 1)},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert found.success
    return -found.fun


@pytest.mark.parametrize("s", NORMS)
@pytest.mark.parametrize("radius", [0.05, 0.5, 1.5])
def test_ascend_is_optimal(s, radius):
    generator = torch.Generator().manual_seed(1)
    x = (1.6 * torch.rand(6, 8, generator=generator) - 0.3).clamp(0, 1)
    g = free_gradient(torch.randn(6, 8, generator=generator), x)
    moved = ascend(GroundNorm(s), x, g, torch.full((6,), radius).double())
    assert ((moved >= 0) & (moved <= 1)).all()
    assert (norm(moved.double() - x.double(), s) <= radius * (1 + 1e-6)).all()
    gain = linear_value(g, moved.double() - x.double())
    best = [best_gain(*pair, radius, s) for pair in zip(x, g, strict=True)]
    torch.testing.assert_close(gain, torch.tensor(best).double(), rtol=2e-5, atol=0)


@pytest.mark.parametrize("s", [1.0, 1.2, 1.5, 2.0, 3.0, 20.0])
@pytest.mark.parametrize("fraction", [0.0, 1e-3, 0.3, 0.9, 1.0])
def test_ascend_uses_up_the_radius_wherever_the_box_has_room(s, fraction):
    x, g = grid(40)
    g = free_gradient(g, x) * 1e-20
    room = norm(torch.where(g > 0, 1 - x, torch.where(g < 0, x, torch.zeros(()))), s)
    length = norm(ascend(GroundNorm(s), x, g, fraction * room).double() - x.double(), s)
    assert (length <= fraction * room * (1 + 1e-6)).all()
    torch.testing.assert_close(length, fraction * room, rtol=2e-4, atol=0)


@pytest.mark.parametrize("s", [2.0, 3.0, 20.0])
@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize(("share", "off"), [(1e-3, 1e-4), (0.3, 1e-3), (0.6, 1e-3), (1.0, 0.07)])
def test_climb_is_about_as_long_as_asked(s, power, share, off):
    x, g = grid(100, 784)
    g = free_gradient(g**power, x)
    ground = GroundNorm(s)
    radii = share * ground.distances(torch.where(g > 0, 1 - x, torch.where(g < 0, -x, 0.0)))
    assert ((ground.distances(climb(ground, x, g, radii) - x) / radii - 1).abs() <= off).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.float32, (2, 6), elements=st.sampled_from([0.0, 1e-4, 0.5, 0.9, 1.0])),
    hnp.arrays(np.float32, (2, 6), elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    st.sampled_from([1.0, 1.1, 2.0, 7.0, INF]),
    st.floats(0, 1e3),
)
def test_climb_goes_up_inside_the_box(x, g, s, radius):
    x, ground = torch.from_numpy(x), GroundNorm(s)
    g = free_gradient(torch.from_numpy(g), x)
    top = climb(ground, x, g, torch.full((2,), radius, dtype=torch.float64))
    assert ((top >= 0) & (top <= 1)).all()
    assert ((top - x) * g >= 0).all()
    assert (top == x)[g == 0].all()
    clamped = (x + radius * ground.direction(g)).clamp(0, 1)  # however few the pixels, no step is shorter than this one
    assert (ground.distances(top - x) >= ground.distances(clamped - x) - 1e-6).all()


def test_ascend_stays_without_gradient():
    x, g = grid()
    for s in NORMS:
        assert torch.equal(ascend(GroundNorm(s), x, 0 * g, torch.ones(len(x)).double()), x)


@pytest.mark.parametrize("s", NORMS)
def test_projected_step_stays_within_the_radius_of_the_image(s):
    x, g = grid()
    first = free_gradient(g, x)
    lengths, radii = torch.full((len(x),), 0.4).double(), torch.full((len(x),), 0.5).double()
    point = projected_step(GroundNorm(s), x, x, first, lengths, radii)
    assert torch.equal(point, ascend(GroundNorm(s), x, first, lengths))  # the radius does not bind yet
    again = projected_step(GroundNorm(s), x, point, free_gradient(g, point), lengths, radii)
    moved = norm(again.double() - x.double(), s)
    assert (moved <= 0.5 * (1 + 1e-6)).all()
    assert (moved > norm(point.double() - x.double(), s) * (1 + 1e-3)).any()
    assert ((again >= 0) & (again <= 1)).all()


def nearest_in_l1(v, radius):
    """The point of the l_1 ball of a radius that is nearest to v in l_2: soft thresholding, its threshold by brentq."""
    if np.abs(v).sum() <= radius:
        return v
    threshold = brentq(lambda t: np.maximum(np.abs(v) - t, 0).sum() - radius, 0, np.abs(v).max(), xtol=1e-12)
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.float32, (3, 8), elements=st.floats(0, 1, width=16)),
    hnp.arrays(np.float32, (3, 8), elements=st.floats(0, 1, width=16)),
    hnp.arrays(np.float32, (3, 8), elements=st.floats(-4, 4, width=16)),
    st.floats(0.01, 9),
    st.floats(0.01, 5),
    st.floats(0, 1),
)
def test_sparse_step_goes_up_few_pixels_and_comes_back_to_the_nearest_point(x, point, g, length, radius, dense):
    free = free_gradient(torch.tensor(g), torch.tensor(point)).numpy()
    lengths, radii = torch.full((3,), length).double(), torch.full((3,), radius).double()
    found = sparse_step(*map(torch.tensor, (x, point, free)), lengths, radii, dense).double().numpy()
    assert (np.abs(found - x).sum(1) <= radius * (1 + 1e-6) + 8 * 2**-22).all()  # up to the rounding of pixels
    assert ((found >= 0) & (found <= 1)).all()
    for row in range(3):
        moved = (point[row] != x[row]).sum()
        most = moved / 2 if moved else dense * 8
        size = np.abs(free[row])
        # The pixels that were chosen are those above some size: as many as wanted, the largest ones in any case, and
        # those that the halvings of the largest size cannot tell from one of them.
        choices = []
        for least in np.unique(size):
            if (size > least * (1 + 1e-5) + size.max() / 2**10).sum() <= most:
                chosen = (size >= least) & (size > 0)
                up = point[row] + length / max((size >= least).sum(), 1) * np.sign(free[row]) * chosen
                choices.append(x[row] + nearest_in_l1(np.clip(up, 0, 1).astype(np.float64) - x[row], radius))
        assert min(np.abs(choice - found[row]).max() for choice in choices) <= 2e-5


def test_sparse_steps_climb_near_the_best_point_of_the_ball():
    """Of a linear function, which `ascend` knows: the few steepest pixels at the edge of the box."""
    x, g = grid()
    radii = torch.full((len(x),), 2.0).double()
    best = ascend(GroundNorm(1), x, free_gradient(g, x), radii)
    point = x
    for step in range(60):
        point = sparse_step(x, point, free_gradient(g, point), radii * 0.9**step, radii, 1.0)
    gain, most = ((g * (end - x)).flatten(1).sum(1) for end in (point, best))
    assert (gain >= 0.94 * most).all()


def attack_gain(attack, x, g):
    """E J(x') - E J(x) for J = <g_i, x>."""
    x_adv = attack(Linear(g), x, torch.arange(len(x))).x_adv
    return linear_value(g, x_adv.double() - x.double()).mean().item()


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0, INF])
@pytest.mark.parametrize("s", NORMS)
def test_slope_at_zero_is_upsilon_of_the_free_gradient(p, s):
    x, g = grid()
    free = torch.where(((x == 0) & (g < 0)) | ((x == 1) & (g > 0)), 0.0, g)
    upsilon = power_mean(norm(free, conjugate(s)), conjugate(p))
    attack = WFGSM(p=p, norm=s, delta=0.01, loss=own_logit)
    assert attack(Linear(g), x, torch.arange(len(x))).upsilon.item() == pytest.approx(upsilon, rel=1e-6)
    assert attack_gain(attack, x, g) == pytest.approx(0.01 * upsilon, rel=1e-4)
    # clamping afterwards gains less, though it promises more
    clamped = WFGSM(p=p, norm=s, delta=0.01, loss=own_logit, box=False)
    assert attack_gain(clamped, x, g) < (0.9 if s < INF else 1.0001) * 0.01 * upsilon  # s = inf: only shares differ
    assert clamped(Linear(g), x, torch.arange(len(x))).upsilon > 1.1 * upsilon


def exact_gain(x, g, p, delta):
    """V(delta) - V(0) for J = <g_i, x> on the box with p = s: the multiplier decouples the pixels."""
    x, g = x.flatten(1).double(), g.flatten(1).double()
    room, g = torch.where(g > 0, 1 - x, x), g.abs()
    if math.isinf(p):
        return (g * room.clamp(max=delta)).sum(1).mean().item()

    def moves(multiplier):
        return torch.minimum(room, (g / (multiplier * p)).pow(1 / (p - 1)))

    def excess(log_multiplier):
        return moves(math.exp(log_multiplier)).pow(p).sum(1).mean().item() - delta**p

    return (g * moves(math.exp(brentq(excess, -30, 30, xtol=1e-12)))).sum(1).mean().item()


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0, INF])
@pytest.mark.parametrize("delta", [0.01, 0.3, 1.0])
def test_exact_value_on_the_box_bounds_the_attacks(p, delta):
    x, g = grid()
    exact = exact_gain(x, g, p, delta)
    fgsm = WFGSM(p=p, norm=p, delta=delta, loss=own_logit)
    slope = fgsm(Linear(g), x, torch.arange(len(x))).upsilon.item()
    assert exact <= delta * slope * (1 + 1e-6)
    one = attack_gain(fgsm, x, g)
    many = attack_gain(WPGD(p=p, norm=p, delta=delta, loss=own_logit, steps=50, random_start=False), x, g)
    assert max(one, many) <= exact * (1 + 1e-5)
    # A small radius saturates nothing and one step is exact; a large one leaves budget that more steps spend.
    assert one >= exact * (1 - 1e-4 if delta == 0.01 else 0.85)
    assert many >= max(one * (1 - 1e-3), 0.95 * exact)

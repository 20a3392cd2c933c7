"""The worst weights within a relative entropy: a closed form, the dual, and a search over all weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar

from wdro_train.theory.statistical_error import worst_weights


def entropy(weights):
    """KL(P^ || a) with n a_i = the weights."""
    return -weights.log().mean().item()


@pytest.mark.parametrize("radius", [1e-6, 0.01, 0.1, 1.0, 5.0])
def test_two_losses(radius):
    """a = 1/2 +- t: KL = -log(1 - 4 t^2) / 2, so that 2 t = sqrt(1 - exp(-2 r))."""
    t = math.sqrt(-math.expm1(-2 * radius)) / 2
    for losses in ([3.0, 1.0], [1e-6, 0.0], [-5.0, -7e8]):
        found = worst_weights(torch.tensor(losses), radius)
        assert found.tolist() == pytest.approx([1 + 2 * t, 1 - 2 * t], rel=1e-9)


def dual(losses, radius):
    """min over eta > max l of eta - exp(-r) exp(mean log(eta - l)): Van Parys et al. 2021, arXiv 1704.04118."""

    def value(log_gap):
        eta = losses.max() + math.exp(log_gap)
        return (eta - math.exp(-radius) * (eta - losses).log().mean().exp()).item()

    return minimize_scalar(value, bounds=(-30, 15), method="bounded", options={"xatol": 1e-10}).fun


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=2, max_size=40), st.floats(1e-3, 2))
def test_primal_meets_dual(losses, radius):
    losses = torch.tensor(losses, dtype=torch.float64)
    weights = worst_weights(losses, radius)
    assert weights.min() >= 0
    assert weights.mean().item() == pytest.approx(1)
    assert entropy(weights) <= radius * (1 + 1e-9) + 1e-12
    value = (weights * losses).mean().item()
    assert value >= losses.mean().item() - 1e-9
    assert value == pytest.approx(dual(losses, radius), rel=1e-5, abs=1e-5)


def test_no_other_weights_are_worse():
    losses = torch.tensor([0.3, 2.0, 0.1, 5.0, 1.0, 4.9], dtype=torch.float64)
    constraints = [
        {"type": "eq", "fun": lambda a: a.mean() - 1},
        {"type": "ineq", "fun": lambda a: 0.3 - entropy(torch.tensor(a))},
    ]
    found = minimize(
        lambda a: -(a * losses.numpy()).mean(), [1.0] * 6, bounds=[(1e-6, 6)] * 6, constraints=constraints, tol=1e-10
    )
    weights = worst_weights(losses, 0.3)
    assert entropy(weights) == pytest.approx(0.3, rel=1e-9)
    assert (weights * losses).mean().item() == pytest.approx(-found.fun, rel=1e-6)


def test_limits():
    losses = torch.tensor([0.0, 1.0, 5.0])
    assert torch.equal(worst_weights(losses, 0.0), torch.ones(3, dtype=torch.float64))
    assert torch.equal(worst_weights(torch.full((4,), 2.0), 0.5), torch.ones(4, dtype=torch.float64))
    assert torch.equal(worst_weights(torch.tensor([7.0]), 0.5), torch.ones(1, dtype=torch.float64))
    assert worst_weights(losses, 50.0).tolist() == pytest.approx([0, 0, 3], abs=1e-9)
    torch.testing.assert_close(worst_weights(1e-20 * losses, 0.2), worst_weights(losses, 0.2))
    torch.testing.assert_close(worst_weights(losses + 4, 0.2), worst_weights(losses, 0.2))
    tied = worst_weights(torch.tensor([1.0] * 999 + [0.0]), 3.0)  # one image has too little weight to give
    assert tied[:999].tolist() == pytest.approx([1000 / 999] * 999, rel=1e-3)
    assert entropy(tied.clamp_min(1e-300)) <= 3.0

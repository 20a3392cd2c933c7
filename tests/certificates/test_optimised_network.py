"""Linear relaxation with optimised slopes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_intervals import built, radii
from test_relaxed_graph import REACH, inside
from torch import nn

from wdro_train.certificates import LinearRelaxation
from wdro_train.certificates.optimised_network import OptimisedNetwork
from wdro_train.certificates.radius_search import GivenRadii
from wdro_train.certificates.relaxed_graph import RelaxedGraph
from wdro_train.certificates.relaxed_network import RelaxedNetwork
from wdro_train.theory.losses import margin

ALWAYS = torch.full((6,), math.inf)  # every bound may be improved


def perceptron(seed, inputs=2, hidden=6):
    torch.manual_seed(seed)
    sizes = [inputs, hidden, hidden, 3]
    layers = [part for k in range(3) for part in (nn.Linear(sizes[k], sizes[k + 1]), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double().requires_grad_(False)


@pytest.mark.parametrize("norm", [pytest.param(1, marks=pytest.mark.slow), 2, math.inf])
@pytest.mark.parametrize("name", ["residual", "joined", "small_cnn"])
def test_bounds_hold_and_beat_those_with_fixed_slopes(name, norm):
    net, x, y = built(name)
    net, x = net.double(), x.double()
    reach = radii(REACH[norm] / 2)
    with torch.no_grad():
        found = OptimisedNetwork(net, x, torch.float64, norm, (4,)).margins(x, y, reach, ALWAYS)
        fixed = (
            RelaxedNetwork(net, x, torch.float64, norm=norm) if name == "small_cnn" else RelaxedGraph(net, norm=norm)
        )
        looser = fixed.margins(x, y, reach)
        assert (found >= looser).all()
        assert (found > looser + 1e-5).any()
        for points in inside(x, REACH[norm] / 2, norm, 40):
            assert (margin(net(points), y) >= found - 1e-12).all()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), radius=st.floats(0.01, 0.6), steps=st.integers(0, 12))
def test_whatever_the_steps_no_point_has_a_smaller_margin(seed, radius, steps):
    """Two inputs, so a grid leaves little of the ball out."""
    net = perceptron(seed)
    x = torch.rand(6, 2, dtype=torch.float64)
    y = net(x).argmax(1)
    with torch.no_grad():
        found = OptimisedNetwork(net, x, torch.float64, math.inf, (steps,)).margins(x, y, radii(radius), ALWAYS)
        assert (found >= RelaxedNetwork(net, x, torch.float64).margins(x, y, radii(radius)) - 1e-12).all()
    line = torch.linspace(-1, 1, 41, dtype=torch.float64)
    points = (x + radius * torch.cartesian_prod(line, line)[:, None]).clamp(0, 1)
    assert (margin(net(points.flatten(0, 1)), y.repeat(len(points))).view(-1, 6).amin(0) >= found - 1e-12).all()


def test_margins_that_better_boxes_alone_close_need_no_slopes():
    """Seed and radius at which no rival is left once the boxes of hidden layers are improved."""
    net = perceptron(155)
    x = torch.rand(1, 2, dtype=torch.float64)
    y = net(x).argmax(1)
    with torch.no_grad():
        found = OptimisedNetwork(net, x, torch.float64, math.inf, (8,)).margins(x, y, radii(0.5)[:1])
        looser = RelaxedNetwork(net, x, torch.float64).margins(x, y, radii(0.5)[:1])
        corners = torch.rand(1000, 2, dtype=torch.float64).round()
        points = (x + torch.rand(1000, 2, dtype=torch.float64) - 0.5).clamp(0, 1)
        for candidates in (points, (x + corners - 0.5).clamp(0, 1)):
            assert margin(net(candidates), y.expand(1000)).amin() >= found
    assert looser <= 0 < found


def test_given_radii_are_those_of_the_largest_one():
    net = perceptron(3).float()
    x = torch.rand(12, 2)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    grid = (0.02, 0.1, 0.3)
    for method in ("ibp", "crown_ibp", "crown"):
        largest = LinearRelaxation(norm="inf", method=method)(net, x, y).radii
        found = LinearRelaxation(norm="inf", method=method, search=GivenRadii(grid))(net, x, y).radii
        assert found[0] == 0
        for r, r_given in zip(largest.tolist(), found.tolist(), strict=True):
            assert r_given in (0, *grid)
            assert r_given <= r * 1.006
            assert all(r < radius * 1.006 for radius in grid if radius > r_given)

"""CROWN-IBP on networks that are read from the graph of their forward pass."""

import math

import pytest
import torch
from oracles import conjugate
from test_intervals import COVERED, NETWORKS, SHAPE, Forward, built, radii
from torch import nn
from torch.nn import functional

from wdro_train.certificates.interval_network import IntervalNetwork
from wdro_train.certificates.relaxed_graph import RelaxedGraph
from wdro_train.models import small_cnn
from wdro_train.theory.box import ascend
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.losses import margin

NORMS = [1, 2, math.inf]
QUICK = ("residual", "joined", "small_cnn")
SMALL = [  # without resnet18, whose interval bounds overflow any use
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS if name != "resnet18"
]
REACH = {1: 0.5, 2: 0.15, math.inf: 0.02}
OPERATIONS = COVERED | {
    "overlapping windows": lambda layer, x: layer(functional.max_pool2d(x.repeat(1, 1, 2, 2), 3, 2, 1).flatten(1)),
    "uneven windows": lambda layer, x: layer(
        functional.max_pool2d(functional.pad(x, (0, 0, 9, 0)), (3, 1), stride=(2, 1), ceil_mode=True)[:, :, :8].flatten(
            1
        )
    ),
    "adaptive": lambda layer, x: layer(functional.adaptive_max_pool2d(x, 8).flatten(1) - 0.3).sigmoid(),
    "squashed": lambda layer, x: layer(functional.softplus(functional.relu6(5 * x + 2), beta=2).flatten(1)).tanh(),
    "leaks": lambda layer, x: functional.leaky_relu(layer(functional.leaky_relu(x - 0.5, 1.5).flatten(1)), 0.2) * 2,
    "rectified twice": lambda layer, x: (
        layer(functional.relu(functional.relu(x - 0.3) - 0.2).flatten(1)).relu() - x.mean()
    ),
}


def inside(x, radius, norm, count):
    """Points of the ball and the box around images: the ends of random directions, and points within them."""
    ground = GroundNorm(norm)
    for k in range(count):
        g = torch.randn_like(x) * (torch.rand_like(x) < 0.2 + 0.8 * (k % 2))
        yield ascend(ground, x, g, torch.full((len(x),), radius if k % 3 else radius * k / count, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", SMALL)
def test_bounds_of_networks_hold_and_beat_intervals(name, norm):
    net, x, y = built(name)
    net, x = net.double(), x.double()
    with torch.no_grad():
        relaxed, intervals = (kind(net, torch.float64, norm) for kind in (RelaxedGraph, IntervalNetwork))
        torch.testing.assert_close(relaxed.margins(x, y, radii(0.0)), margin(net(x), y), rtol=1e-9, atol=1e-12)
        bound, looser = (kind.differences(x, y, radii(REACH[norm])) for kind in (relaxed, intervals))
        assert (bound >= looser).all()
        assert (bound > looser + 1e-3).any()
        for points in inside(x, REACH[norm], norm, 30):
            logits = net(points)
            assert (logits.gather(1, y[:, None]) - logits >= bound - 1e-12).all()
        assert (bound.gather(1, y[:, None]) == 0).all()


@pytest.mark.parametrize(
    "norm", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), math.inf]
)
@pytest.mark.parametrize("function", OPERATIONS.values(), ids=OPERATIONS)
def test_every_operation_keeps_all_points(function, norm):
    torch.manual_seed(0)
    net = Forward(function).double().eval()
    x = (1.5 * torch.rand(3, *SHAPE, dtype=torch.float64) - 0.25).clamp(0, 1)
    with torch.no_grad():
        y = net(x.clone()).argmax(1)
        relaxed, intervals = (kind(net, torch.float64, norm) for kind in (RelaxedGraph, IntervalNetwork))
        torch.testing.assert_close(relaxed.margins(x, y, radii(0.0, 3)), margin(net(x.clone()), y))
        for radius in (REACH[norm], 10 * REACH[norm]):
            bound = relaxed.differences(x, y, radii(radius, 3))
            assert (bound >= intervals.differences(x, y, radii(radius, 3))).all()
            for points in inside(x, radius, norm, 60):
                logits = net(points.clone())
                assert (logits.gather(1, y[:, None]) - logits >= bound - 1e-12).all()


class Affine(nn.Module):
    """Additions, shortcuts and changes of shape, but nothing that is not affine."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(48, 4)

    def forward(self, x):
        z = self.first(2 * x - 1)
        z = self.norm(z + self.second(z))
        return self.head(functional.avg_pool2d(z, 2).view(x.size(0), -1)) / 3


@pytest.mark.parametrize("norm", NORMS)
def test_exact_on_affine_networks(norm):
    """f_y - f_j falls by the radius times the dual norm of its gradient."""
    torch.manual_seed(0)
    net = Affine().double().eval()
    x = 0.45 + 0.1 * torch.rand(5, *SHAPE, dtype=torch.float64)
    y = torch.arange(5) % 4
    rows = torch.func.jacrev(lambda image: net(image[None])[0])(x[0]).flatten(1)
    lengths = torch.linalg.vector_norm(rows[y][:, None] - rows, ord=conjugate(norm), dim=2)
    logits = net(x)
    true = logits.gather(1, y[:, None]) - logits - 0.3 * lengths
    found = RelaxedGraph(net, norm=norm).differences(x, y, radii(0.3, 5))
    torch.testing.assert_close(found, true)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [IntervalNetwork, RelaxedGraph])
def test_gradients_are_those_of_the_bounds(kind, norm):
    """Against finite differences, along a random direction in the space of all weights; in the network's own mode."""
    net, x, y = built("joined")
    net, x = net.double().train(), x.double()
    bounds = kind(net, norm=norm)
    weights = torch.rand(6, 4, dtype=torch.float64)

    def value():
        return (weights * bounds.differences(x, y, radii(REACH[norm]))).sum()

    gradients = torch.autograd.grad(value(), list(net.parameters()))
    directions = [torch.randn_like(p) for p in net.parameters()]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    sides = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(net.parameters(), directions, strict=True):
                p.add_(d, alpha=step)
            sides.append(value().item())
    assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(slope, rel=1e-5)
    assert net.training


def test_the_live_network_is_read_once_and_bounded_as_it_is():
    torch.manual_seed(0)
    net = small_cnn(SHAPE, 4, [0.4, 0.5], [0.3, 0.2], width=3).train()
    x, y = torch.rand(4, *SHAPE), torch.arange(4)
    bounds = RelaxedGraph(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    values = []
    for _ in range(20):
        loss = functional.cross_entropy(-bounds.differences(x, y, radii(0.01, 4)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]
    fresh = RelaxedGraph(net, torch.float32).differences(x, y, radii(0.01, 4))
    torch.testing.assert_close(bounds.differences(x, y, radii(0.01, 4)), fresh)

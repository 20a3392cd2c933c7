"""Interval bounds of networks that are read from the graph of their forward pass."""

import math

import pytest
import torch
from oracles import reference_images, reference_network
from torch import nn
from torch.nn import functional

from wdro_train.attacks import MinimalDistance
from wdro_train.certificates import LinearRelaxation
from wdro_train.certificates.interval_network import IntervalNetwork
from wdro_train.certificates.relaxed_network import RelaxedNetwork
from wdro_train.models import Normalize, preact_resnet18, resnet18, small_cnn, wide_resnet
from wdro_train.theory.losses import correct, margin
from wdro_train.utils.errors import UserError

SHAPE = (2, 8, 8)


class Residual(nn.Module):
    """Additions, functional activations, a shortcut by slicing and padding, and a view."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = functional.relu(self.norm(self.first(2 * x - 1)))
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        x = functional.leaky_relu(self.second(x) + shortcut, 0.1)
        x = functional.avg_pool2d(x, x.size(3))
        return self.head(x.view(x.size(0), -1))


class Joined(nn.Module):
    """Two branches, of which one is pooled by its maximum and the other squashed; logits that are no linear layer's."""

    def __init__(self):
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.right = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="zeros"), nn.Tanh(), nn.AvgPool2d(2, 2))
        self.head = nn.Linear(3 * 9 + 3 * 16, 4)

    def forward(self, x):
        parts = torch.cat([self.left(x).flatten(1), self.right(x).flatten(1)], dim=1)
        return self.head(parts) / 2 - 1


NETWORKS = {
    "residual": Residual,
    "joined": Joined,
    "small_cnn": lambda: small_cnn(SHAPE, 4, [0.4, 0.5], [0.3, 0.2], width=3),
    "resnet18": lambda: resnet18(SHAPE, 4, [0.4, 0.5], [0.3, 0.2]),
    "preact_resnet18": lambda: preact_resnet18(SHAPE, 4, [0.4, 0.5], [0.3, 0.2], width=4),
    "wide_resnet": lambda: wide_resnet(SHAPE, 4, [0.4, 0.5], [0.3, 0.2], depth=10, width=1),
}


def built(name):
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    x = (1.5 * torch.rand(6, *SHAPE) - 0.25).clamp(0, 1)
    return net, x, net(x).argmax(1)


def radii(value, count=6):
    return torch.full((count,), value, dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_at_radius_zero_the_bound_is_the_margin(name):
    net, x, y = built(name)
    found = IntervalNetwork(net, torch.float64).margins(x, y, radii(0.0))
    torch.testing.assert_close(found, margin(net.double()(x.double()), y), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("radius", [1e-4, 1e-2, 0.2])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_point_of_the_ball_has_a_smaller_margin(name, radius):
    net, x, y = built(name)
    with torch.no_grad():
        bound = IntervalNetwork(net, torch.float64).margins(x, y, radii(radius))
        net = net.double()
        for scale in (1.0, 0.5):
            noise = scale * radius * torch.randn(60, *x.shape, dtype=torch.float64).sign()
            points = (x.double() + noise).clamp(0, 1).flatten(0, 1)
            assert (margin(net(points), y.repeat(60)).view(60, -1) >= bound - 1e-12).all()


@pytest.mark.parametrize("radius", [0.0, 0.003, 0.02])
def test_the_same_as_interval_arithmetic_between_relus(radius):
    net, x, y = built("small_cnn")
    ours = IntervalNetwork(net, torch.float64).margins(x, y, radii(radius))
    theirs = RelaxedNetwork(net, x, torch.float64, "ibp").margins(x, y, radii(radius), math.inf)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_exact_on_linear_networks():
    """f_y - f_j falls by at most radius ||w_y - w_j||_1 away from the edge of the box."""
    torch.manual_seed(0)
    net = nn.Sequential(Normalize([0.2], [0.5]), nn.Flatten(), nn.Linear(9, 3)).double()
    x = 0.3 + 0.4 * torch.rand(6, 1, 3, 3, dtype=torch.float64)
    y = net(x).argmax(1)
    rows = net[2].weight / 0.5
    gaps = (rows[y][:, None] - rows).abs().sum(2)
    logits = net(x)
    fallen = (logits.gather(1, y[:, None]) - logits - 0.1 * gaps).scatter(1, y[:, None], math.inf).amin(1)
    torch.testing.assert_close(IntervalNetwork(net, torch.float64).margins(x, y, radii(0.1)), fallen)


@pytest.mark.parametrize("name", NETWORKS)
def test_certified_radii_lie_below_those_of_an_attack(name):
    net, x, y = built(name)
    found = LinearRelaxation(norm="inf", method="ibp")(net, x, y)
    attacked = MinimalDistance(norm="inf", steps=20)(net, x, y).distances
    if name in ("residual", "joined", "small_cnn"):  # the bounds of untrained deep networks are of no use
        assert (found.radii > 0).all()
    assert (found.radii <= attacked).all()
    assert torch.equal(found.correct, correct(net(x), y))


def test_one_call_certifies_what_each_image_alone_gets():
    net, (x, y) = reference_network("adversarial"), reference_images()
    certificate = LinearRelaxation(norm="inf", method="ibp")
    together = certificate(net, x[:40], y[:40]).radii
    alone = torch.cat([certificate(net, x[i : i + 1], y[i : i + 1]).radii for i in range(40)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=0)


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(128, 4)

    def forward(self, x):
        z = self.layer(x.flatten(1))
        return z * z


class Branching(Product):
    def forward(self, x):
        return self.layer(x.flatten(1)) if x.sum() > 0 else self.layer(-x.flatten(1))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Product, r"mul \(mul\) of the network has no interval bounds"),
        (Branching, "has no fixed graph"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.LayerNorm(4)), "LayerNorm.* has no interval bounds"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LeakyReLU(-0.5), nn.Linear(128, 4)), "LeakyReLU"),
    ],
)
def test_what_has_no_bounds_is_named(network, message):
    torch.manual_seed(0)
    with pytest.raises(UserError, match=message):
        LinearRelaxation(norm="inf", method="ibp")(network().eval(), torch.rand(2, *SHAPE), torch.tensor([0, 1]))


def test_a_hook_that_changes_an_image_is_noticed():
    net, x, y = built("residual")
    handle = net.register_forward_hook(
        lambda module, inputs, output: (
            output + (torch.arange(len(output)) > 3)[:, None] * 5 * torch.eye(4)[y[: len(output)]]
        )
    )
    try:
        with pytest.raises(UserError, match="miss its margin"):
            LinearRelaxation(norm="inf", method="ibp")(net, x, y)
    finally:
        handle.remove()


def test_under_autocast_the_certificate_is_that_of_the_float32_network():
    net, x, y = built("residual")
    certificate = LinearRelaxation(norm="inf", method="ibp")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = certificate(net, x, y).radii
    assert torch.equal(inside, certificate(net, x, y).radii)

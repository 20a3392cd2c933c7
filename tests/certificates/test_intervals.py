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


LARGE_ONES_SLOWLY = [pytest.param(name, marks=pytest.mark.slow if name == "resnet18" else ()) for name in NETWORKS]


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
@pytest.mark.parametrize("name", LARGE_ONES_SLOWLY)
def test_no_point_of_the_ball_has_a_smaller_margin(name, radius):
    net, x, y = built(name)
    with torch.no_grad():
        bound = IntervalNetwork(net, torch.float64).margins(x, y, radii(radius))
        net = net.double()
        for scale in (1.0, 0.5):
            noise = scale * radius * torch.randn(60, *x.shape, dtype=torch.float64).sign()
            points = (x.double() + noise).clamp(0, 1).flatten(0, 1)
            assert (margin(net(points), y.repeat(60)).view(60, -1) >= bound - 1e-12).all()


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


@pytest.mark.parametrize("name", LARGE_ONES_SLOWLY)
def test_certified_radii_lie_below_those_of_an_attack(name):
    net, x, y = built(name)
    found = LinearRelaxation(norm="inf", method="ibp")(net, x, y)
    attacked = MinimalDistance(norm="inf", steps=20)(net, x, y).distances
    if name in ("residual", "joined", "small_cnn"):  # the bounds of untrained deep networks are of no use
        assert (found.radii > 0).all()
    assert (found.radii <= attacked).all()
    assert torch.equal(found.correct, correct(net(x), y))


@pytest.mark.slow
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
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.LayerNorm(4)),
            r"^layer 2 \(LayerNorm[^\n]* has no interval bounds; [^\n]* changes of shape$",
        ),
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
        with pytest.raises(UserError, match="has a hook"):
            LinearRelaxation(norm="inf", method="ibp")(net, x, y)
    finally:
        handle.remove()


def test_under_autocast_the_certificate_is_that_of_the_float32_network():
    net, x, y = built("residual")
    certificate = LinearRelaxation(norm="inf", method="ibp")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = certificate(net, x, y).radii
    assert torch.equal(inside, certificate(net, x, y).radii)


class Forward(nn.Module):
    """A network whose forward pass is given as a function of its layer and its images."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(128, 4), function

    def forward(self, x):
        return self.function(self.layer, x)


def in_place_beside(layer, x):
    z = layer(x.flatten(1)) + 0.5
    halves = z.view(2, -1) if z.dim() == 1 else z.view(-1, 4)
    functional.relu_(halves)  # changes z as well
    return z - 2 * layer(x.flatten(1))


WOULD_LOSE_THE_RADIUS = {
    "an attribute that is a tensor": lambda layer, x: layer(x.data.flatten(1)),
    "detached": lambda layer, x: layer(x.detach().flatten(1)),
    "a scale of the sum": lambda layer, x: torch.add(layer(x.flatten(1)), layer(x.flatten(1)), alpha=-3),
    "a rounded quotient": lambda layer, x: torch.div(layer(x.flatten(1)), 0.1, rounding_mode="floor"),
    "a negative divisor": lambda layer, x: layer(functional.avg_pool2d(x, 1, divisor_override=-1).flatten(1)),
    "a function that falls": lambda layer, x: layer(functional.elu(x - 0.5, alpha=-2.0).flatten(1)),
    "changed in place and used again": in_place_beside,
    "bounds that move": lambda layer, x: layer(torch.clamp(x, max=x.mean()).flatten(1)),
    "written in place, not used": lambda layer, x: (x.add_(1), layer(x.flatten(1)))[1],
}


@pytest.mark.parametrize("function", WOULD_LOSE_THE_RADIUS.values(), ids=WOULD_LOSE_THE_RADIUS)
def test_what_would_lose_the_radius_is_refused(function):
    torch.manual_seed(0)
    x = 0.5 + 0.4 * torch.rand(2, *SHAPE)
    with pytest.raises(UserError):
        IntervalNetwork(Forward(function).eval(), torch.float64).margins(x, torch.tensor([0, 1]), radii(0.1, 2))


@pytest.mark.parametrize("wrap", [lambda z: {"logits": z}, lambda z: {"logits": z, "features": z}])
def test_an_output_that_holds_the_logits_among_others_is_refused(wrap):
    net = Forward(lambda layer, x: wrap(layer(x.flatten(1)))).eval()
    with pytest.raises(UserError, match="returns its logits alone"):
        LinearRelaxation(norm="inf", method="ibp")(net, torch.rand(3, *SHAPE), torch.tensor([0, 1, 2]))


def test_two_classes_and_images_that_are_all_misclassified():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 2)).eval()
    x = torch.rand(4, *SHAPE)
    y = net(x).argmax(1)
    certificate = LinearRelaxation(norm="inf", method="ibp")
    weight = net[1].weight.detach()
    logits = net(x)
    exact = (margin(logits, y) / (weight[0] - weight[1]).abs().sum()).detach().double()
    assert (certificate(net, x, y).radii >= 0.98 * exact).all()  # and more where the box is in the way
    assert torch.equal(certificate(net, x, 1 - y).radii, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown", "alpha_crown"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet18"])
def test_where_no_image_is_correct_nothing_is_certified(name, method):
    """Networks begin like this, and there is no image then to take a shape from."""
    if (method != "ibp" and name == "joined") or (method == "crown" and name != "small_cnn"):
        pytest.skip("has operations without such bounds")
    net, x, y = built(name)
    found = LinearRelaxation(norm="inf", method=method)(net, x, (y + 1) % 4)
    assert not found.correct.any()
    assert torch.equal(found.radii, torch.zeros(6, dtype=torch.float64))


def doubled(layer):
    """Three ways in which a layer computes twice what its weights say."""
    yield "hook", lambda: layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    original = layer.forward
    yield "forward", lambda: setattr(layer, "forward", lambda x: 2 * original(x))
    if isinstance(layer, nn.Conv2d):
        inner = layer._conv_forward
        yield "_conv_forward", lambda: setattr(layer, "_conv_forward", lambda *a: 2 * inner(*a))


@pytest.mark.parametrize("way", ["hook", "forward", "_conv_forward"])
@pytest.mark.parametrize("place", [0, 3])
def test_a_layer_that_computes_something_else_is_noticed(way, place):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)).eval()
    if way not in dict(doubled(net[place])):
        pytest.skip("a linear layer has no such part")
    x = torch.rand(6, *SHAPE)
    y = net(x).argmax(1)
    dict(doubled(net[place]))[way]()
    y = torch.where(correct(net(x), y), y, net(x).argmax(1))
    with pytest.raises(UserError, match="a replaced forward method"):
        LinearRelaxation(norm="inf", method="ibp")(net, x, y)


COVERED = {
    "arithmetic": lambda layer, x: layer((1 - (-x) * 0.5 / 0.3 + (x - x.mul(0.2)) - 0.1).flatten(1)),
    "negative scale": lambda layer, x: layer((x * -2.0).flatten(1)) / -3,
    "pooling": lambda layer, x: layer(functional.max_pool2d(functional.pad(x, (4, 4, 4, 4), value=-1), 2).flatten(1)),
    "means and sums": lambda layer, x: layer((x + x.mean((2, 3), keepdim=True) + x.sum(1, keepdim=True)).flatten(1)),
    "shapes": lambda layer, x: layer(x.permute(0, 2, 3, 1).transpose(1, 2).reshape(x.size(0), -1)[:, :]),
    "branches": lambda layer, x: layer(torch.cat([x[:, :1].tanh(), torch.sigmoid(x[:, 1:])], 1).flatten(1)),
    "clamped": lambda layer, x: layer(functional.hardtanh(x.clamp(0.2, 0.7) - 0.4, -0.1, 0.2).flatten(1)).relu(),
    "in place": lambda layer, x: layer(functional.relu(x - 0.5, inplace=True).flatten(1)).add_(1.0),
}


@pytest.mark.parametrize("function", COVERED.values(), ids=COVERED)
@pytest.mark.parametrize("radius", [0.0, 0.05, 0.4])
def test_every_operation_keeps_all_points(function, radius):
    torch.manual_seed(0)
    net = Forward(function).double().eval()
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        y = net(x.clone()).argmax(1)
        bound = IntervalNetwork(net, torch.float64).margins(x, y, radii(radius, 3))
        torch.testing.assert_close(
            IntervalNetwork(net, torch.float64).margins(x, y, radii(0.0, 3)), margin(net(x.clone()), y)
        )
        for _ in range(200):
            noise = radius * torch.empty_like(x).uniform_(-1, 1).sign() * torch.rand(3, 1, 1, 1, dtype=torch.float64)
            assert (margin(net((x + noise).clamp(0, 1)), y) >= bound - 1e-12).all()

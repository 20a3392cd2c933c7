"""Rounding is bounded: what a network computes is as near to its exact values as `ComputedIntervals` says."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wdro_train.certificates import LinearRelaxation
from wdro_train.certificates.rounding import EXACT, FLOAT32, TF32, Arithmetic, ComputedIntervals
from wdro_train.theory.losses import margin
from wdro_train.utils.errors import UserError


class Residual(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, z):
        return torch.relu(self.body(z) + z) * 0.7 - 0.1


def network(seed, offset=0.0):
    """Every kind of operation, and hidden values that are moved up by an offset and down again."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(6)
    norm.running_mean.normal_(0, 3)
    norm.running_var.uniform_(0.1, 2)
    layers = [nn.Conv2d(1, 6, 3, padding=1, bias=False), norm, nn.ReLU()]
    layers += [Residual(nn.Conv2d(6, 6, 3, padding=1)), nn.MaxPool2d(2), nn.LeakyReLU(0.1), nn.Conv2d(6, 8, 3)]
    layers += [nn.AvgPool2d(2), nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 5)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        model[-3].bias += offset
        model[-1].bias -= model[-1].weight @ torch.full((20,), offset)
    return model


def points(x, radius, norm, count):
    """Images of the ball, most of them at its edge and at the edge of the box."""
    step = torch.randn(count, *x.shape)
    if norm == math.inf:
        step = step.sign() * (1 - (torch.rand(step.shape) < 0.2) * torch.rand(step.shape))
    else:
        step = step / step.flatten(2).norm(dim=2)[..., None, None, None]
    return (x + radius * step).clamp(0, 1)


def errors(model, norm, arithmetic, x, y, radii):
    return ComputedIntervals(model, torch.float64, norm, arithmetic).parts(x, y, radii)[1]


def differences(logits, y):
    return logits.gather(-1, y.expand(len(logits), -1)[..., None]) - logits


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 300.0, 1e4]),
    st.sampled_from([math.inf, 2.0]),
    st.sampled_from([0.0, 0.02, 0.3]),
)
def test_computed_margins_are_within_the_bound(seed, offset, norm, radius):
    model = network(seed, offset)
    x, y = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 4])
    bound = errors(model, norm, FLOAT32, x, y, torch.full((3,), radius))
    found = points(x, radius, norm, 50)
    with torch.no_grad():
        computed = torch.stack([model(each) for each in found]).double()
        exact = torch.stack([model.double()(each.double()) for each in found])
    miss = (differences(computed, y) - differences(exact, y)).abs().amax((0, 2))
    assert (miss <= bound).all()


def shortened(z):
    """To 10 bits after the leading one, as TF32 has them."""
    mantissa, exponent = torch.frexp(z)
    return torch.ldexp(torch.round(mantissa * 2**11) / 2**11, exponent)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_shortened_factors_are_within_the_bound_of_their_arithmetic(offset):
    exceeded = 0
    for seed in range(10):
        torch.manual_seed(seed)
        first, last = nn.Linear(64, 30), nn.Linear(30, 4)
        with torch.no_grad():
            first.bias += offset
            last.bias -= last.weight @ torch.full((30,), offset)
        x, y = torch.rand(1, 1, 8, 8), torch.tensor([1])
        model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
        with torch.no_grad():
            inputs = points(x, 0.1, math.inf, 100)[:, 0].flatten(1)
            hidden = torch.relu(shortened(inputs) @ shortened(first.weight).T + first.bias)
            computed = shortened(hidden) @ shortened(last.weight).T + last.bias
            exact = model.double()(inputs.double())
        miss = (differences(computed[:, None].double(), y) - differences(exact[:, None], y)).abs().max()
        bounds = [errors(model, math.inf, kind, x, y, torch.full((1,), 0.1)) for kind in (TF32, FLOAT32)]
        assert miss <= bounds[0]
        exceeded += int(miss > bounds[1])
    assert exceeded >= 5  # so the test sees the difference


def test_closed_form_of_one_layer():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, 1.0]]))
        layer.bias.copy_(torch.tensor([4.0, -1.0]))
    x = torch.tensor([[0.5, 0.25, 1.0]])
    unit = 2.0**-24
    gamma = 4 * unit / (1 - 4 * unit)
    expected = gamma * (0.5 + 0.5 + 3 + 4) + gamma * (0.25 + 1 + 1)
    found = errors(nn.Sequential(layer), math.inf, FLOAT32, x, torch.tensor([0]), torch.zeros(1))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    at_the_edge = errors(nn.Sequential(layer), math.inf, FLOAT32, x, torch.tensor([0]), torch.full((1,), 0.25))
    expected += gamma * (0.25 * (1 + 2) + 0.25 * 0.5)  # the last pixel is at the edge of the box
    assert at_the_edge.item() == pytest.approx(expected, rel=1e-5)


def test_smaller_for_less_rounding():
    model, x, y = network(0), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    exact, single, short = (errors(model, math.inf, kind, x, y, torch.zeros(2)) for kind in (EXACT, FLOAT32, TF32))
    assert (exact < single * 1e-7).all()
    assert (short > single * 50).all()
    assert math.isinf(Arithmetic(0.1).products(10))


@pytest.mark.parametrize("method", ["ibp", "crown_ibp", "crown"])
@pytest.mark.parametrize("offset", [300.0, 1e4])
def test_no_flip_nearer_than_the_radius_with_large_hidden_values(method, offset):
    """Networks that are affine where it matters, so that the nearest flip in exact arithmetic is known."""
    flipped = certified = 0
    for seed in range(10):
        torch.manual_seed(seed)
        first, last = nn.Linear(64, 20), nn.Linear(20, 2)
        with torch.no_grad():
            first.bias += offset
            last.bias -= last.weight @ torch.full((20,), offset)
            slope = (last.weight[0] - last.weight[1]) @ first.weight
            x = (0.5 + 0.2 * torch.rand(1, 64)).view(1, 1, 8, 8)
            model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)
            last.bias[0] += 0.05 * slope.abs().sum() - (model(x)[0, 0] - model(x)[0, 1])
        y = torch.tensor([0])
        radius = LinearRelaxation(norm=math.inf, method=method, tolerance=1e-6)(model, x, y).radii
        certified += int(radius > 0)
        for share in (1 - 1e-6, 1 - 1e-7):
            worst = x - radius.float() * share * slope.sign().view_as(x)
            near = worst + 1e-7 * torch.randn(2000, 8, 8)[:, None]
            inside = (near - x).double().abs().flatten(1).amax(1) < radius
            with torch.no_grad():
                flipped += int((margin(model(near), y.expand(2000)) <= 0)[inside].sum())
    assert flipped == 0
    assert certified >= 8 or offset == 1e4


def test_arithmetic_is_chosen_by_name():
    model, x, y = network(0), torch.rand(8, 1, 8, 8), None
    with torch.no_grad():
        y = model(x).argmax(1)
    radii = [
        LinearRelaxation(norm=math.inf, method="ibp", arithmetic=name)(model, x, y).radii
        for name in ("exact", "float32", "tf32")
    ]
    assert (radii[0] >= radii[1]).all()
    assert (radii[1] > radii[2]).any()
    with pytest.raises(UserError, match="arithmetic='float16'"):
        LinearRelaxation(norm=math.inf, arithmetic="float16")

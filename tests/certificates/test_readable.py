"""Networks that could be misread: shared layers, hooks away from the images, narrow weights, exceptions to rules."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from wdro_train.certificates import ExactRobustness, LinearRelaxation, LipschitzCertificate
from wdro_train.certificates.rounding import FLOAT32, ComputedIntervals
from wdro_train.models.lipschitz_layers import OrthogonalLinear, SortPairs
from wdro_train.utils.errors import UserError

ALL = {
    **{name: LinearRelaxation(norm=math.inf, method=name) for name in ("ibp", "crown_ibp", "crown", "alpha_crown")},
    "exact": ExactRobustness(norm=math.inf, budget=5),
    "lipschitz": LipschitzCertificate(),
}


def line(slope, offset):
    """Logits (slope x + offset, 0) of one pixel."""
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[slope], [0.0]]))
        layer.bias.copy_(torch.tensor([offset, 0.0]))
    return layer


def pixel(value):
    return torch.full((1, 1, 1, 1), value), torch.tensor([0])


@pytest.mark.parametrize("name", ["ibp", "crown", "alpha_crown", "exact"])
def test_a_layer_used_twice_is_run_twice(name):
    """relu(-4 relu(x - 0.5) + 1): the second ReLU acts only where x < 0.5 never; the label is lost where x > 0.7."""
    relu = nn.ReLU()
    inner, outer = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        inner.weight.fill_(1.0), inner.bias.fill_(-0.4), outer.weight.fill_(1.0), outer.bias.fill_(-0.1)
    # x = 0.7: relu(0.3) = 0.3, relu(0.2) = 0.2, margin 0.2 - 0.15; flips at x = 0.65
    model = nn.Sequential(nn.Flatten(), inner, relu, outer, relu, line(1.0, -0.15))
    radius = ALL[name](model, *pixel(0.7)).radii.item()
    assert 0 < radius <= 0.05 + 1e-6


def test_a_shared_layer_stretches_each_time():
    slope = nn.LeakyReLU(3.0)
    model = nn.Sequential(nn.Flatten(), line_of(-1.0), slope, slope, line(1.0, 3.0))
    # logits 3 - 9 x: flips at x = 1 / 3
    radius = LipschitzCertificate()(model, *pixel(0.2)).radii.item()
    assert radius <= 1 / 3 - 0.2 + 1e-6


def line_of(slope):
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(slope)
    return layer


@pytest.mark.parametrize("name", ALL)
def test_hooks_are_refused_wherever_they_act(name):
    model = nn.Sequential(nn.Flatten(), line_of(1.0), nn.ReLU(), line(1.0, -0.1))
    model[1].register_forward_hook(lambda module, inputs, out: torch.where(out < 0.65, 0.0, out))
    with pytest.raises(UserError, match="hook"):
        ALL[name](model, *pixel(0.7))


@pytest.mark.parametrize("name", ALL)
def test_a_replaced_forward_is_refused(name):
    model = nn.Sequential(nn.Flatten(), line_of(1.0), nn.ReLU(), line(1.0, -0.1))
    model[1].forward = lambda x: torch.where(x < 0.65, 0.0, x)
    with pytest.raises(UserError, match="hook or a replaced"):
        ALL[name](model, *pixel(0.7))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_narrow_weights_are_refused(name, kind):
    model = nn.Sequential(nn.Flatten(), line(1.0, -0.5)).to(kind)
    with pytest.raises(UserError, match=str(kind)):
        ALL[name](model, *pixel(0.75))


@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
@pytest.mark.parametrize(
    "layer", [nn.Softplus(1, 0.0), nn.Softplus(-1.0), nn.Softplus(1, 5)], ids=["threshold", "beta", "early"]
)
def test_a_softplus_that_jumps_is_refused(method, layer):
    model = nn.Sequential(nn.Flatten(), line(1.0, -0.5), layer)
    with pytest.raises(UserError, match="Softplus"):
        LinearRelaxation(norm=math.inf, method=method)(model, *pixel(0.45))


class Sum(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.p, self.b = nn.Parameter(torch.tensor([1.0, 0.0])), nn.Parameter(torch.tensor([-0.5, 0.0]))

    def forward(self, x):
        return x.flatten(1).sum(1, keepdim=True, **self.options) * self.p + self.b


def test_another_type_inside_is_refused():
    x, y = pixel(0.75)
    assert LinearRelaxation(norm=math.inf, method="ibp")(Sum(), x, y).radii > 0.2
    with pytest.raises(UserError, match="sum"):
        LinearRelaxation(norm=math.inf, method="ibp")(Sum(dtype=torch.bfloat16), x, y)


class Mixer(nn.Module):
    """A linear layer on each row of an image."""

    def __init__(self, outputs):
        super().__init__()
        self.rows, self.last = nn.Linear(3, outputs), nn.Linear(3 * outputs, 2)

    def forward(self, x):
        return self.last(torch.relu(self.rows(x.squeeze(1))).flatten(1))


@pytest.mark.parametrize("outputs", [3, 4])
@pytest.mark.parametrize("method", ["ibp", "crown_ibp"])
@pytest.mark.parametrize("norm", [1.0, 2.0])
def test_linear_layers_on_rows(outputs, method, norm):
    for seed in range(10):
        torch.manual_seed(seed)
        model = Mixer(outputs).eval()
        with torch.no_grad():
            model.rows.weight.mul_(torch.logspace(-1, 1, outputs)[:, None])
            x = torch.rand(4, 1, 3, 3)
            y = model(x).argmax(1)
            radii = LinearRelaxation(norm=norm, method=method)(model, x, y).radii.clamp(max=3.0)
            step = torch.randn(200, 4, 9) * (torch.rand(200, 4, 9) < 0.3)
            step = step / step.norm(norm, dim=2, keepdim=True).clamp(min=1e-9)
            near = (x + (0.999 * radii.float()[:, None] * step).view(200, *x.shape)).clamp(0, 1)
            found = model(near.flatten(0, 1)).argmax(1).view(200, 4)
            assert (found == y)[:, radii > 0].all()


class Thrice(OrthogonalLinear):
    def forward(self, x):
        return 3 * super().forward(x)


def test_a_constant_is_that_of_the_class_that_computes():
    model = nn.Sequential(nn.Flatten(), Thrice(9, 6), nn.Linear(6, 2))
    with pytest.raises(UserError, match="Thrice"):
        LipschitzCertificate()(model, torch.rand(1, 1, 3, 3), torch.tensor([0]))


def test_pairs_are_pairs():
    with pytest.raises(UserError, match="3 channels"):
        SortPairs()(torch.rand(1, 3))
    with pytest.raises(UserError, match="3 channels"):
        SortPairs().lipschitz_bound((3,))


def test_exact_answers_in_the_arithmetic_of_its_relaxation():
    x, y = pixel(0.75)
    model = nn.Sequential(nn.Flatten(), line(1.0, -0.5))
    radii = {
        name: ExactRobustness(
            norm=math.inf, relaxation=LinearRelaxation(norm=math.inf, arithmetic=name), tolerance=1e-4
        )(model, x, y).radii.item()
        for name in ("float32", "tf32")
    }
    assert radii["tf32"] < radii["float32"] - 5e-4


class Constants(nn.Module):
    """Weights that are computed in float32 at each forward pass, far from what float64 makes of them."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.p = kind, nn.Parameter(torch.tensor([0.3, 1.7]))

    def forward(self, x):
        x = x.flatten(1)
        if self.kind == "cat":
            return torch.cat([(self.p[:1] * 0.3).expand(x.shape[0], 1), x], 1)
        return x * ((self.p + 1e3) - 1e3) if self.kind == "sum" else x * functional.softmax(self.p * 40, 0)


@pytest.mark.parametrize("make", [
    *(lambda kind=kind: Constants(kind) for kind in ("cat", "sum", "softmax")),
    lambda: nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(1, 2))),
    lambda: nn.Sequential(nn.Flatten(), parametrizations.spectral_norm(nn.Linear(1, 2)).eval()),
])  # fmt: skip
def test_constants_of_the_graph_are_those_of_float32(make):
    for seed in range(10):
        torch.manual_seed(seed)
        model, x, y = make().eval(), torch.rand(20, 1, 1, 1), torch.zeros(20, dtype=torch.long)
        with torch.no_grad():
            bounds, errors = ComputedIntervals(model, torch.float64, math.inf, FLOAT32).parts(x, y, torch.zeros(20))
            logits = model(x).double()
        assert ((logits[:, 0] - logits[:, 1] - bounds).abs() <= errors).all()


def test_in_place_activations_are_bounded():
    model = nn.Sequential(nn.Flatten(), line(1.0, -0.5), nn.ReLU6(inplace=True))
    for method in ("ibp", "crown_ibp", "alpha_crown"):
        assert LinearRelaxation(norm=math.inf, method=method)(model, *pixel(0.75)).radii > 0.2

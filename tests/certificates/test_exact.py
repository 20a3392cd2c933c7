"""Exact robustness by mixed-integer programming, against enumeration, relaxations and attacks."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from enumeration import nearest_flip
from torch import nn

from wdro_train.attacks.minimal_distance import MinimalDistance
from wdro_train.certificates import ExactRobustness, LinearRelaxation, relu_program
from wdro_train.certificates.affine_pieces import AffinePieces
from wdro_train.certificates.exact_questions import AtRadius, Bisection
from wdro_train.certificates.relu_program import ReluProgram
from wdro_train.models import Normalize
from wdro_train.theory.losses import correct
from wdro_train.utils.errors import UserError

INF = math.inf


def tiny(seed, inputs=2, hidden=4, classes=3):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.normal_()
            layer.bias.normal_(std=0.5)
    x = torch.rand(4, inputs)
    return net.eval(), x, net(x).argmax(1)


def convolutional(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(Normalize([0.4], [0.3]), nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2), nn.ReLU()),
        nn.Sequential(nn.AvgPool2d(2, 1), nn.Conv2d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Dropout()),
        *(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3)),
    ).eval()
    x = torch.rand(3, 1, 6, 6)
    net(x)
    net[2].running_mean.normal_(std=0.2)
    net[2].running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for part in net[-1].parameters():
            part *= 50  # margins well above the tolerance of the solver
    return net, x, net(x).argmax(1)


def asked(net, x, y, radius, budget=20.0, low=None, high=None):
    low = torch.zeros(len(x)) if low is None else low
    high = torch.full((len(x),), INF) if high is None else high
    return ExactRobustness(norm=INF, budget=budget).narrow(net, x, y, low, high, AtRadius(radius))


@pytest.mark.parametrize("seed", [1, 2])
def test_radii_are_those_of_an_enumeration_of_all_linear_regions(seed):
    net, x, y = tiny(seed)
    exact = np.array([nearest_flip(net, image, int(label), INF) for image, label in zip(x, y, strict=True)])
    found = ExactRobustness(norm=INF, tolerance=1e-3)(net, x, y)
    finite = np.isfinite(exact)
    assert finite.any()
    assert (found.radii.numpy() <= exact * (1 + 2e-6)).all()
    np.testing.assert_allclose(found.radii.numpy()[finite], exact[finite], rtol=2e-3, atol=1e-4)


def test_radii_agree_with_a_dense_grid():
    net, x, y = tiny(2, hidden=8)
    axis = torch.linspace(0, 1, 801)
    grid = torch.cartesian_prod(axis, axis)
    wrong = net(grid).argmax(1)
    found = ExactRobustness(norm=INF, tolerance=1e-3)(net, x, y).radii
    for image, label, radius in zip(x, y, found.tolist(), strict=True):
        nearest = float(torch.where(wrong != label, (grid - image).abs().amax(1), INF).min())
        assert radius <= nearest + 1e-6
        assert radius >= min(nearest, 1.0) * (1 - 2e-3) - 1 / 800


def test_a_deep_convolutional_network_is_bracketed_by_relaxation_and_attack():
    net, x, y = convolutional()
    crown = LinearRelaxation(norm=INF)(net, x, y).radii
    attack = MinimalDistance(norm=INF, steps=60, targets=2, restarts=3)(net, x, y).distances
    found = ExactRobustness(norm=INF).narrow(net, x, y, crown, attack, Bisection(1.0, 1e-2))
    assert (crown <= found.low).all()
    assert (found.low <= found.high).all()
    assert (found.high <= attack).all()
    assert (found.high - found.low <= 0.011 * found.high).all()
    flipped = found.flipped > 0
    assert not correct(net(found.flips[flipped]), y[flipped]).any()
    distances = (found.flips.double() - x.double()).abs().flatten(1).amax(1)
    torch.testing.assert_close(distances[flipped], found.high[flipped])


def test_answers_agree_with_relaxation_and_attack():
    net, x, y = tiny(3, inputs=6, hidden=12)
    crown, attack = LinearRelaxation(norm=INF)(net, x, y).radii, MinimalDistance(norm=INF)(net, x, y).distances
    inside = asked(net, x, y, float(crown.min()) * 0.99)
    assert inside.proven.all()
    assert (inside.high == INF).all()
    for i, distance in enumerate(attack.tolist()):
        if distance < INF:
            beyond = asked(net, x[i : i + 1], y[i : i + 1], distance * 1.01)
            assert beyond.flipped.all()
            assert beyond.low.item() == 0
            assert beyond.high.item() <= distance * 1.01


def test_without_time_the_interval_stays_as_it_is():
    net, x, y = convolutional()
    crown = LinearRelaxation(norm=INF)(net, x, y).radii
    found = asked(net, x, y, float(crown.max()) * 1.5, budget=1e-9, low=crown, high=crown * 4)
    assert torch.equal(found.low, crown)
    assert torch.equal(found.high, crown * 4)
    assert not (found.proven + found.flipped).any()


@pytest.mark.parametrize("bound", [None, 0.0, 1e-5])
def test_a_bound_within_the_tolerances_is_no_proof(monkeypatch, bound):
    """Logits are up to 10, so float32 may be off by 1e-4, whatever the solver says."""
    net, x, y = tiny(3, inputs=6, hidden=12)
    with torch.no_grad():
        net[2].weight *= 10 / net(x).abs().max()
    answer = SimpleNamespace(status=1, x=None, fun=None, mip_dual_bound=bound)
    monkeypatch.setattr(relu_program, "milp", lambda *_, **__: answer)
    distances = MinimalDistance(norm=INF)(net, x, y).distances
    near = distances < INF
    found = asked(net, x[near], y[near], 1.2 * float(distances[near].max()))
    assert not found.proven.any()
    assert not found.low.any()


def test_a_point_that_the_network_classifies_is_no_counterexample(monkeypatch):
    net, x, y = tiny(3, inputs=6, hidden=12)
    radius = float(LinearRelaxation(norm=INF)(net, x, y).radii.min()) * 2

    def lying(objective, **problem):
        point = np.full(len(objective), 0.0)
        point[:6] = x[0].double().numpy()  # the image itself
        return SimpleNamespace(status=0, x=point, fun=0.0, mip_dual_bound=0.0)

    monkeypatch.setattr(relu_program, "milp", lying)
    found = asked(net, x[:1], y[:1], radius, low=torch.zeros(1))
    assert found.high.item() == INF
    assert not found.flipped.any()


def test_the_least_margin_is_found_over_the_box():
    """With its best rival and bounds from sampling far outside, the dual bound is below every sampled margin."""
    net, x, y = tiny(1, inputs=5, hidden=9)
    low, high = (x[0] - 0.2).clamp(0, 1).double(), (x[0] + 0.2).clamp(0, 1).double()
    net.double().requires_grad_(False)
    hidden = net[0]
    reach = hidden.weight.abs() @ (high - low) / 2
    middle = hidden((low + high) / 2)
    program = ReluProgram(AffinePieces(net), low, high, [(middle - reach, middle + reach)])
    points = low + (high - low) * torch.rand(4000, 5, dtype=torch.float64)
    logits = net(points)
    for rival in {0, 1, 2} - {int(y[0])}:
        least = float((logits[:, y[0]] - logits[:, rival]).min())
        found = program.least_margin(int(y[0]), rival, 0.0, 10.0)
        assert found.bound <= max(least, 0.0)
        if least > 0.1:
            assert found.bound > 0 or found.point is not None


def test_pieces_carry_affine_functions_and_their_logits_are_the_network_s():
    net, x, _ = convolutional()
    pieces = AffinePieces(net)
    torch.testing.assert_close(pieces.logits(x), net(x).double(), rtol=1e-5, atol=1e-5)
    eye = torch.eye(36, dtype=torch.float64).view(36, 1, 6, 6)
    functions = pieces.through(0, torch.cat([torch.zeros_like(eye[:1]), eye]))
    values = functions[0] + torch.einsum("v,v...->...", x[0].double().flatten(), functions[1:])
    torch.testing.assert_close(values, pieces.pieces[0](x[:1].double())[0])


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), "layer 1"),
        (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU()), nn.Linear(4, 3)), "layer 1.1"),
    ],
)
def test_other_layers_are_refused_by_name(net, words):
    with pytest.raises(UserError, match=words):
        asked(net.eval(), torch.rand(2, 6), torch.tensor([0, 1]), 0.1)


def test_a_hook_that_changes_the_network_is_noticed():
    net, x, _ = tiny(0)
    net[0].register_forward_hook(lambda layer, given, out: out + 1)
    with pytest.raises(UserError, match="has a hook"):
        asked(net, x, net(x).argmax(1), 0.1)


def test_only_the_maximum_norm_is_taken():
    with pytest.raises(UserError, match=r"attack\.norm=inf"):
        ExactRobustness(norm=2)


def test_questions():
    at = AtRadius(0.1)
    assert at(0.05, 0.2) == at(0.1, INF) == 0.1
    assert at(0.11, INF) is at(0.0, 0.1) is None
    middle = Bisection(0.4, 0.01)
    assert middle(0.1, 0.3) == pytest.approx(0.2)
    assert middle(0.2, INF) == pytest.approx(0.3)
    assert middle(0.399, INF) is middle(0.5, 0.6) is middle(0.0, 0.0) is None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_random_point_within_a_proven_radius_is_misclassified(seed):
    net, x, y = tiny(seed, inputs=9, hidden=16, classes=4)
    found = ExactRobustness(norm=INF, tolerance=1e-3)(net, x, y)
    radii = found.radii.clamp(max=1.0)
    corners = x + radii[:, None] * torch.randn(2000, *x.shape).sign() * (1 - 1e-6)
    assert correct(net(corners.clamp(0, 1).float().flatten(0, 1)), y.repeat(2000)).all()
    attack = MinimalDistance(norm=INF, steps=60, restarts=3, targets=3)(net, x, y).distances
    assert (found.radii <= attack).all()

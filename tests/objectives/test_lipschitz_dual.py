"""The dual of the certified knapsack: its value, its gradient, and what it is the gradient of (theory, section 11)."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import on_ranks
from scipy.optimize import minimize_scalar
from torch import nn

from wdro_train.attacks import DualAscent, Fixed
from wdro_train.certificates import LipschitzCertificate
from wdro_train.models import Normalize, lipschitz_cnn, lipschitz_mlp
from wdro_train.models.lipschitz_layers import OrthogonalLinear, SortPairs
from wdro_train.objectives import LipschitzDual
from wdro_train.objectives.lipschitz_dual import dual_loss
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError
from wdro_train.utils.learnt import Stateful
from wdro_train.utils.pass_counter import PassCounter

INF = math.inf
SHAPE = (1, 8, 8)


def network(seed=0, **options):
    torch.manual_seed(seed)
    return lipschitz_mlp(SHAPE, 4, [0.3], [0.2], **{"width": 16, "depth": 2, **options})


def batch(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *SHAPE, generator=generator), torch.randint(4, (count,), generator=generator)


def labelled(net, count=24):
    """Images that the network answers correctly, all of them."""
    x, _ = batch(count)
    return x, net(x).argmax(1)


def signed_radii(net, x, y):
    """By their definition, for a network whose last rows are orthonormal."""
    logits = net(x).double()
    return (logits.gather(1, y[:, None]) - logits).scatter(1, y[:, None], INF).amin(1) / math.sqrt(2)


@pytest.mark.parametrize("p", [1, 1.5, 2, INF])
def test_the_loss_is_the_mean_of_phi(p):
    net, (x, y) = network(), batch()
    u = signed_radii(net, x, y) / 0.3
    phi = [1 - value if value < 0 else 1 - min(value, 1) ** (1 if math.isinf(p) else p) for value in u.tolist()]
    result = LipschitzDual(p=p, norm=2, delta=0.1, marginal=Fixed(0.3))(net, x, x, y)
    assert result.loss.item() == pytest.approx(sum(phi) / len(phi), rel=1e-4)  # rows are as long as 1 to 5e-5
    assert (u < 0).any()
    assert (u > 0).any()
    torch.testing.assert_close(result.clean_logits, net(x))
    assert result.adv_logits is None
    assert not LipschitzDual.needs_adversary
    assert result.terms["certified_pointwise"].item() == pytest.approx(
        (signed_radii(net, x, y) > 0.1).double().mean().item()
    )
    assert result.terms["marginal_distance"].item() == pytest.approx(0.3)


@settings(deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=20), st.floats(1, 8))
def test_phi_falls_is_continuous_and_counts_errors(values, p):
    u = torch.tensor(sorted(values), dtype=torch.float64)
    phi = dual_loss(u, p)
    assert (phi[1:] <= phi[:-1] + 1e-12).all()
    assert (phi >= (u <= 0).double() - 1e-12).all()  # no less than the clean error
    assert (phi[u >= 1] == 0).all()
    torch.testing.assert_close(dual_loss(u + 1e-9, p), phi, rtol=0, atol=1e-7)


@pytest.mark.parametrize("p", [1, 2, 3, INF])
@pytest.mark.parametrize("make", [network, lambda: lipschitz_cnn(SHAPE, 4, [0.3], [0.2], 4, 1, 16, 1)])
def test_the_gradient_equals_finite_differences(make, p):
    net = make().double()
    x, y = batch(12)
    x, objective = x.double(), LipschitzDual(p=p, norm=2, delta=0.1, marginal=Fixed(0.4))
    parameters = list(net.parameters())
    objective(net, x, x, y)  # reads the constant
    wide = Wide(objective)
    gradients = torch.autograd.grad(wide(net, x, y), parameters)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(q.shape, generator=generator, dtype=torch.float64) for q in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
    sides = []
    for step in (1e-6, -1e-6):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for q, d in zip(moved.parameters(), directions, strict=True):
                q += step * d
        sides.append(wide(moved, x, y).item())
    assert slope == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-3)
    assert abs(slope) > 1e-3


class Wide:
    """The objective in float64, from radii in float64."""

    def __init__(self, objective):
        self.objective = objective

    def __call__(self, net, x, y):
        return dual_loss(signed_radii(net, x, y) / 0.4, self.objective.ball.p).mean()


@pytest.mark.parametrize("p", [1.5, 2, 4])
def test_at_the_dual_distance_the_gradient_is_that_of_the_certified_error(p):
    """The envelope theorem: grad C = grad E phi(r / D), with D that minimises (delta / D)^p + E (1 - (r / D)^p)_+."""
    net = network()
    x, y = labelled(net, 4000)  # one image is moved in part, which counts for less among many
    radii = signed_radii(net, x, y).detach().double().numpy()
    delta = 0.6 * float((radii**p).mean() ** (1 / p))

    def dual(log_distance):
        distance = math.exp(log_distance)
        return (delta / distance) ** p + float((1 - (radii / distance) ** p).clip(0).mean())

    best = minimize_scalar(dual, bounds=(math.log(delta), math.log(10)), method="bounded", options={"xatol": 1e-12})
    assert best.fun == pytest.approx(1 - RobustnessCurve(radii).accuracy(delta, p), abs=1e-6)
    objective = LipschitzDual(p=p, norm=2, delta=delta, marginal=Fixed(math.exp(best.x)))
    (gradient,) = torch.autograd.grad(objective(net, x, x, y).loss, net[-1].bias)
    direction = torch.tensor([1.0, -2.0, 0.5, 0.3])
    sides = []
    for step in (1e-4, -1e-4):
        moved = copy.deepcopy(net).double()
        moved[-1].bias.data += step * direction
        found = signed_radii(moved, x.double(), y).detach().clamp(min=0).numpy()
        sides.append(1 - RobustnessCurve(found).accuracy(delta, p))
    assert (gradient @ direction).item() == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=0.02)
    assert abs((gradient @ direction).item()) > 1e-2


def test_the_distance_follows_from_the_ball():
    """With a fixed network dual ascent ends where the images nearer than D cost the whole budget."""
    net = network()
    x, y = labelled(net, 200)
    radii = signed_radii(net, x, y).detach()
    delta = 0.5 * radii.square().mean().sqrt().item()
    objective = LipschitzDual(p=2, norm=2, delta=delta, marginal=DualAscent(rate=0.1))
    for _ in range(200):
        objective(net, x, x, y)
    distance = objective.state_dict()["distance"].item()
    below, above = (radii[radii <= share * distance].square().sum() / 200 for share in (0.97, 1.03))
    assert below <= delta**2 <= above
    assert distance > delta


def test_only_misclassified_and_not_yet_certified_images_take_a_gradient():
    net, (x, y) = network(), batch(200)
    radii = signed_radii(net, x, y)
    objective = LipschitzDual(p=2, norm=2, delta=0.05, marginal=Fixed(0.1))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(objective(net, x, x, y).loss, x)
    moved = gradient.flatten(1).norm(dim=1) > 0
    assert torch.equal(moved, radii < 0.1)
    assert (~moved).any()


@pytest.mark.parametrize("p", [2, INF])
def test_ranks_share_one_distance_and_one_objective(p):
    net = network()
    x, y = labelled(net, 40)
    y = torch.where(torch.arange(40) % 5 == 0, (y + 1) % 4, y)
    alone = LipschitzDual(p=p, norm=2, delta=0.05)
    for _ in range(3):
        expected = alone(net, x, x, y)

    def rank(reducer, net):
        rows = slice(20 * reducer.rank, 20 * (reducer.rank + 1))
        objective = LipschitzDual(p=p, norm=2, delta=0.05)
        for _ in range(3):
            result = objective(net, x[rows], x[rows], y[rows], reducer=reducer)
        return result.loss.detach(), objective.state_dict()["distance"]

    losses, distances = zip(*on_ranks(2, rank, net), strict=True)
    assert distances[0] == distances[1] == pytest.approx(alone.state_dict()["distance"].item(), rel=1e-12)
    torch.testing.assert_close(sum(losses) / 2, expected.loss.detach())


def test_state_is_kept():
    net, (x, y) = network(), batch()
    first, second = (LipschitzDual(p=2, norm=2, delta=0.05) for _ in range(2))
    assert isinstance(first, Stateful)
    for _ in range(5):
        first(net, x, x, y)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(net, x, x, y).loss, first(net, x, x, y).loss)


def test_a_step_is_one_pass():
    net, (x, y) = network(), batch()
    with PassCounter(net) as passes:
        LipschitzDual(p=2, norm=2, delta=0.05)(net, x, x, y).loss.backward()
    assert (passes.forward, passes.backward) == (len(x), len(x))


def test_half_precision_logits_are_widened():
    net, (x, y) = network(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = LipschitzDual(p=2, norm=2, delta=0.05)(net, x, x, y)
    full = LipschitzDual(p=2, norm=2, delta=0.05)(net, x, x, y)
    assert low.loss.dtype == torch.float32
    torch.testing.assert_close(low.loss, full.loss, rtol=0.05, atol=0.02)


def test_what_is_trained_is_what_is_certified():
    """The signed radii are those of the certificate, but for its allowance for rounding, whatever the last layer."""
    torch.manual_seed(0)
    body = [Normalize([0.3], [0.5]), nn.Flatten(), OrthogonalLinear(64, 16), SortPairs(), nn.AvgPool2d(1)]
    net = nn.Sequential(*body[:-1], nn.Linear(16, 4)).eval()
    x, y = labelled(net, 50)
    objective = LipschitzDual(p=INF, norm=2, delta=0.5)
    radii = 0.5 * (1 - objective(net, x[:1], x[:1], y[:1]).loss)
    found = LipschitzCertificate()(net, x[:1], y[:1]).radii
    assert found.item() == pytest.approx(radii.item(), rel=0.05)
    assert found.item() < radii.item()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)), r"layer 1 \(Linear\)"),
        (lambda: nn.Sequential(nn.BatchNorm2d(1, affine=False), nn.Flatten(), nn.Linear(64, 4)), r"\(BatchNorm2d\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Softplus(), nn.Linear(64, 4)), r"layer 1 \(Softplus\) has no known"),
    ],
)
def test_a_network_without_a_fixed_constant_is_refused(make, text):
    with pytest.raises(UserError, match=text):
        LipschitzDual(p=2, norm=2, delta=0.1).check_network(make(), batch()[0])


def test_other_norms_and_empty_balls_are_refused():
    with pytest.raises(UserError, match=r"choose attack\.norm=2"):
        LipschitzDual(p=2, norm="inf", delta=0.1)
    with pytest.raises(UserError, match=r"attack\.delta=0 "):
        LipschitzDual(p=2, norm=2, delta=0)

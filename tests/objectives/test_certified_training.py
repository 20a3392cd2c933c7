"""Certified training: the loss bounds that of every point of the box, and D follows from the ball alone."""

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from oracles import on_ranks, random_batch
from torch import nn
from torch.nn import functional

from wdro_train.attacks import DualAscent, Fixed
from wdro_train.certificates.interval_network import IntervalNetwork
from wdro_train.models import Normalize
from wdro_train.objectives import CrownIbp, Ibp, OneRadius, RadiusOfImage, Sabr, unlearning
from wdro_train.objectives.training_radii import certified_ascent, estimated_radii
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

INF = math.inf
THREAT = {"p": 2, "norm": INF, "delta": 0.1}
pytestmark = pytest.mark.filterwarnings("ignore:.*trained nearer than they are judged")


def convolutional(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12), nn.ReLU(), nn.Linear(12, 5)]
    return nn.Sequential(*layers)


def fixed(distance):
    return OneRadius(Fixed(distance))


def gradients(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


@pytest.mark.parametrize("eps", [0.0, 0.03, 0.3])
def test_bound_is_above_the_loss_everywhere_in_the_box(eps):
    model, (x, y) = convolutional(), random_batch(8)
    result = Ibp(**THREAT, kappa=0.0, radius=fixed(max(eps, 1e-9)))(model, x, x, y)
    worst = torch.stack(
        [
            functional.cross_entropy(model((x + eps * torch.empty_like(x).uniform_(-1, 1).sign()).clamp(0, 1)), y)
            for _ in range(50)
        ]
    )
    assert (worst <= result.loss + 1e-6).all()
    if eps == 0:
        torch.testing.assert_close(result.loss, functional.cross_entropy(model(x), y), rtol=1e-5, atol=1e-6)


def test_loss_and_gradient_of_a_linear_network():
    """The closed form: the last layer is merged into the margins, so each rival's bound is exact."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    x, y = random_batch(8)
    x = 0.2 + 0.6 * x  # away from the edges of the box
    result = Ibp(**THREAT, kappa=0.25, radius=fixed(0.1))(model, x, x, y)
    weight, logits = model[1].weight, model(x)
    reach = 0.1 * (weight[y][:, None] - weight).abs().sum(2)
    worst = logits - logits.gather(1, y[:, None]) + reach
    expected = 0.25 * functional.cross_entropy(logits, y) + 0.75 * functional.cross_entropy(worst, y)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(result.loss, model), gradients(expected, model), rtol=1e-4, atol=1e-6)


def test_bounds_follow_the_weights_without_another_reading():
    model, (x, y) = convolutional(), random_batch(8)
    objective = Ibp(**THREAT, kappa=0.0, radius=fixed(0.05))
    before = objective(model, x, x, y).loss
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = objective(model, x, x, y).loss
    assert after != before
    torch.testing.assert_close(after, Ibp(**THREAT, kappa=0.0, radius=fixed(0.05))(model, x, x, y).loss)
    radii = torch.full((8,), 0.05)
    torch.testing.assert_close(
        IntervalNetwork.live(model).margins(x, y, radii), IntervalNetwork(model, torch.float32).margins(x, y, radii)
    )


@pytest.mark.parametrize("make", [Ibp, CrownIbp])
def test_bounds_follow_tensors_and_layers_that_are_exchanged(make):
    """A network that moves to another device has other tensors afterwards, as have assigned weights."""
    model, (x, y) = nn.Sequential(Normalize([0.5], [0.2]), *convolutional()), random_batch(8)
    objective = make(**THREAT, kappa=0.0, radius=fixed(0.05))
    before = objective(model, x, x, y).loss
    changed = {name: 0.5 * value for name, value in model.state_dict().items()}
    model.load_state_dict(changed, assign=True)
    model[6] = nn.Linear(12, 5)
    after = objective(model, x, x, y).loss
    assert after != before
    torch.testing.assert_close(after, make(**THREAT, kappa=0.0, radius=fixed(0.05))(copy.deepcopy(model), x, x, y).loss)


def test_a_network_that_has_a_model_is_bounded_as_a_whole():
    class Darker(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = convolutional()

        def forward(self, x):
            return self.model(0.5 * x)

    model, (x, y) = Darker(), random_batch(8)
    x = 0.2 + 0.6 * x  # away from the edges of the box
    found = Ibp(**THREAT, kappa=0.0, radius=fixed(0.05))(model, x, x, y).loss
    inside = Ibp(**THREAT, kappa=0.0, radius=fixed(0.025))(model.model, 0.5 * x, x, y).loss
    torch.testing.assert_close(found, inside, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda objective: pickle.loads(pickle.dumps(objective))])
def test_a_copy_trains_its_own_network(copied):
    model, (x, y) = convolutional(), random_batch(8)
    objective = Ibp(**THREAT, radius=fixed(0.05))
    objective(model, x, x, y)
    again, other = copied(objective), convolutional(seed=1)
    torch.testing.assert_close(again(other, x, x, y).loss, Ibp(**THREAT, radius=fixed(0.05))(other, x, x, y).loss)
    again(other, x, x, y).loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_and_running_statistics_stay():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 12), nn.BatchNorm1d(12), nn.Dropout(0.5), nn.Linear(12, 5)
    ).train()
    x, y = random_batch(8)
    with unlearning(objective := Ibp(**THREAT)):
        result = objective(model, x, x, y)
    assert all(module.training for module in model.modules())
    assert model[2].num_batches_tracked == 1  # the clean pass alone
    assert result.loss.isfinite()


def test_weights_of_the_two_losses():
    model, (x, y) = convolutional(), random_batch(8)
    objective = Ibp(**THREAT, kappa=0.3, radius=fixed(0.1))
    objective.warm_up(0.5)  # half the radius, and half of the way from 1 to 0.3
    result = objective(model, x, x, y)
    bound = Ibp(**THREAT, kappa=0.0, radius=fixed(0.05))(model, x, x, y).loss
    torch.testing.assert_close(result.loss, 0.65 * functional.cross_entropy(model(x), y) + 0.35 * bound)
    objective.warm_up(0.0)
    torch.testing.assert_close(objective(model, x, x, y).loss, functional.cross_entropy(model(x), y))


def test_finite_from_the_first_step():
    """Bounds of a deep network that was not trained for them exceed float32's range of the exponential at once."""
    torch.manual_seed(0)
    deep = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.ReLU(), *deep, nn.Linear(64, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    x, y = random_batch(8)
    result = Ibp(**THREAT, radius=fixed(0.5))(model, x, x, y)
    assert result.loss > 1000
    assert gradients(result.loss, model).isfinite().all()


@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_marginal_distance_is_that_of_the_knapsack(p):
    """Radii that do not change: D ends where the images nearer than it cost the budget."""
    radii = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    radii[:40] = 0
    ball, dual, x = WassersteinBall(p, INF, 0.1), certified_ascent(), torch.zeros(400, 1, 6, 6)
    dual.limit = 1.0
    for _ in range(2000):
        reach = dual.reach(ball, x)
        dual.update(ball, torch.where(radii > reach, INF, radii), torch.ones(400))
    spent = radii[radii < reach].pow(p).sum() / 400
    assert spent.item() == pytest.approx(0.1**p, rel=0.05)
    marginal = RobustnessCurve(radii).worst_case(0.1, p).multiplier ** (-1 / p)
    assert reach.item() == pytest.approx(marginal, rel=0.02)


def test_marginal_distance_begins_small_and_keeps_to_the_warm_up():
    ball, dual, x = WassersteinBall(2, INF, 0.1), certified_ascent(), torch.zeros(4, 1, 6, 6)
    assert dual.reach(ball, x).item() == pytest.approx(0.005)
    dual.warm_up(0.1)
    for _ in range(500):
        dual.update(ball, torch.full((4,), INF), torch.ones(4))
        assert dual.reach(ball, x) <= 0.0305 + 1e-12
    assert dual.reach(ball, x).item() == pytest.approx(0.0305)
    dual.warm_up(1.0)
    assert dual.reach(ball, x).item() == pytest.approx(0.0305)  # it did not run away meanwhile
    dual.warm_up(0.0)
    assert dual.reach(ball, x).item() == 0
    pointwise = certified_ascent()
    assert pointwise.reach(WassersteinBall(INF, INF, 0.1), x).item() == pytest.approx(0.1)
    pointwise.warm_up(0.5)
    assert pointwise.reach(WassersteinBall(INF, INF, 0.1), x).item() == pytest.approx(0.05)


def test_radii_of_a_linear_network_are_exact():
    """The margin's bound is linear in the radius there, so the chord is the bound."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    x, y = random_batch(30, classes=2)
    x = 0.3 + 0.4 * x
    logits, weight = model(x).detach(), model[1].weight.detach()
    clean = (logits.gather(1, y[:, None]) - logits.gather(1, 1 - y[:, None])).squeeze(1)
    exact = clean / (weight[0] - weight[1]).abs().sum()
    network = IntervalNetwork.live(model)
    found = estimated_radii(clean, lambda radii: network.margins(x, y, radii), torch.tensor(0.05))
    assert (exact < 0).any()
    assert (exact > 0.05).any()
    expected = torch.where(exact > 0, torch.where(exact > 0.05, INF, exact), 0.0).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    rule = RadiusOfImage(Fixed(0.05), factor=1.5, share=0.2)
    ball = WassersteinBall(2, INF, 0.05)
    asked = rule(ball, x, clean, lambda radii: network.margins(x, y, radii))
    torch.testing.assert_close(asked, (1.5 * expected + 0.01).clamp(max=0.05), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", [RadiusOfImage, OneRadius])
def test_ranks_learn_the_same(rule):
    """The images of all ranks count, whichever rank has them, and every rank asks for the same radii."""
    clean = torch.linspace(-1, 3, 12, dtype=torch.float64)

    def run(reducer, _):
        rows = slice(reducer.rank, None, reducer.world_size)
        radii, ball = rule(DualAscent(rate=0.1, start=0.05)), WassersteinBall(2, INF, 0.1)
        for _ in range(30):
            asked = radii(ball, torch.zeros(len(clean[rows]), 4), clean[rows], lambda r: clean[rows] - 20 * r, reducer)
        return radii.state_dict()["distance"], asked

    ((alone, asked),) = on_ranks(1, run, nn.Identity())
    assert 0.05 < alone < 0.6
    for rank, (distance, part) in enumerate(on_ranks(3, run, nn.Identity())):
        torch.testing.assert_close(distance, alone, rtol=1e-12, atol=0)
        torch.testing.assert_close(part, asked[rank::3], rtol=1e-12, atol=0)


def test_what_was_learnt_is_kept_and_forgotten():
    model, (x, y) = convolutional(), random_batch(12)
    objective = Ibp(**THREAT)
    with unlearning(objective):
        objective(model, x, x, y)
    assert objective.state_dict() == {}
    objective(model, x, x, y)
    kept = copy.deepcopy(objective.state_dict())
    with unlearning(objective):
        objective(model, x, x, y)
    assert objective.state_dict() == kept
    again = Ibp(**THREAT)
    again.load_state_dict(kept)
    torch.testing.assert_close(again(model, x, x, y).loss, objective(model, x, x, y).loss)


@pytest.mark.parametrize(
    ("objective", "forward", "backward"),
    [
        (Ibp(**THREAT), 5, 3),  # clean, and two for each bound: one for the radii, without gradient, one for the loss
        (Ibp(**THREAT, radius=fixed(0.1)), 3, 3),
        (CrownIbp(**THREAT, radius=fixed(0.1)), 8, 8),  # five classes
        (Sabr(**THREAT, steps=3, radius=fixed(0.1)), 6, 6),
    ],
)
def test_passes(objective, forward, backward):
    model, (x, y) = convolutional(), random_batch(12)
    with PassCounter(model) as passes:
        objective(model, x, x, y).loss.backward()
    assert (passes.forward, passes.backward) == (forward * 12, backward * 12)


def test_relaxation_is_the_better_of_two_bounds():
    model, (x, y) = convolutional(), random_batch(8)
    for eps in (0.02, 0.1, 0.4):
        by_intervals = Ibp(**THREAT, kappa=0.0, radius=fixed(eps))(model, x, x, y)
        relaxed = CrownIbp(**THREAT, kappa=0.0, radius=fixed(eps))(model, x, x, y)
        assert relaxed.loss <= by_intervals.loss * (1 + 1e-5)
        for _ in range(30):
            inside = (x + eps * torch.empty_like(x).uniform_(-1, 1).sign()).clamp(0, 1)
            assert functional.cross_entropy(model(inside), y) <= relaxed.loss + 1e-5
        assert gradients(relaxed.loss, model).isfinite().all()


def test_small_boxes():
    """Inside the ball, around points of higher loss than the image's; the whole ball at tau = 1."""
    model, (x, y) = convolutional(), random_batch(8)
    with torch.no_grad():
        model[-1].weight.mul_(5)
    whole = Sabr(**THREAT, tau=1.0, kappa=0.0, radius=fixed(0.1))(model, x, x, y)
    torch.testing.assert_close(whole.loss, Ibp(**THREAT, kappa=0.0, radius=fixed(0.1))(model, x, x, y).loss)
    objective = Sabr(**THREAT, tau=0.2, kappa=0.0, radius=fixed(0.1))
    small = objective(model, x, x, y)
    assert functional.cross_entropy(model(x), y) < small.loss < whole.loss
    points = objective._attack(model, x, y, torch.full((8,), 0.08))
    assert ((points - x).abs() <= 0.08 + 1e-6).all()
    assert ((points >= 0) & (points <= 1)).all()
    assert functional.cross_entropy(model(points), y) > functional.cross_entropy(model(x), y)
    small.loss.backward()
    assert x.grad is None


def test_refusals():
    with pytest.raises(UserError, match=r"objective\.kappa=2"):
        Ibp(**THREAT, kappa=2)
    with pytest.raises(UserError, match=r"attack\.norm=2"):
        Ibp(p=2, norm=2, delta=0.1)
    for settings in ({"tau": 0}, {"tau": 2}, {"steps": 0}):
        with pytest.raises(UserError, match=r"objective\.tau="):
            Sabr(**THREAT, **settings)
    with pytest.raises(UserError, match="share=2"):
        RadiusOfImage(share=2)
    with pytest.raises(UserError, match="start=0"):
        DualAscent(start=0)
    x, y = random_batch(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.GELU())
    with pytest.raises(UserError, match="GELU"):
        Ibp(**THREAT)(model, x, x, y)


@pytest.mark.parametrize("kind", [Ibp, CrownIbp, Sabr])
def test_networks_are_checked_before_training(kind):
    x, _ = random_batch(4)
    kind(**THREAT).check_network(convolutional(), x)
    with pytest.raises(UserError, match="GELU"):
        kind(**THREAT).check_network(nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.GELU()), x)
    hooked = convolutional()
    hooked[3].register_forward_hook(lambda layer, inputs, output: 2 * output)
    with pytest.raises(UserError, match="miss its logits by"):
        kind(**THREAT).check_network(hooked, x)


def test_random_numbers_are_not_drawn():
    model, (x, y) = convolutional(), random_batch(4)
    before = torch.random.get_rng_state()
    Ibp(**THREAT)(model, x, x, y)
    assert torch.equal(before, torch.random.get_rng_state())
    assert partial(Ibp, **THREAT)().needs_adversary is False

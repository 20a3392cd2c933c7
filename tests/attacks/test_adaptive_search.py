"""Sign steps whose length adapts to the image, beside those of their authors."""

import copy
import math

import pytest
import torch
from oracles import norm, reference_images, reference_network
from torch import nn

from wdro_train.attacks.adaptive_search import AdaptiveSearch
from wdro_train.attacks.aimed_search import AimedSearch
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.losses import ce
from wdro_train.utils.pass_counter import PassCounter

INF = math.inf


def searched(model, x, y, radius, start, steps, s=INF, loss=ce, goal=0.0):
    flips = NearestFlips(GroundNorm(s), model, x, y, None)
    with attack_mode(model):
        AdaptiveSearch(steps)(flips, torch.full((len(x),), radius, dtype=torch.float64), goal, loss, y, start)
    return flips


def correct_images(model, count):
    x, y = (part[:count] for part in reference_images())
    right = model(x.to(next(model.parameters()).dtype)).argmax(1) == y
    return x[right], y[right]


@pytest.mark.parametrize("steps", [9, 50])
def test_the_same_images_flip_as_by_the_authors_code(steps):
    base = pytest.importorskip("pyautoattack.autopgd_base")
    model = reference_network("adversarial")
    x, y = (part[:100] for part in reference_images())
    generator = torch.Generator().manual_seed(0)
    start = (x + 0.1 * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    theirs = base.APGDAttack(model, n_iter=steps, norm="Linf", eps=0.1, loss="ce", seed=0, device="cpu")
    theirs.init_hyperparam(x)
    with attack_mode(model):
        kept = theirs.attack_single_run(x, y, x_init=start)[1].bool()
    ours = searched(model, x, y, 0.1, start, steps).distances.isinf()
    assert 0.5 < kept.double().mean() < 0.9
    assert (kept != ours).sum() <= 1


@pytest.mark.parametrize(("s", "radius"), [(INF, 0.1), (2.0, 1.5), (1.0, 10.0)])
def test_flips_lie_inside_radius_and_box(s, radius):
    model = reference_network("adversarial")
    x, y = correct_images(model, 20)
    with PassCounter(model) as passes:
        flips = searched(model, x, y, radius, x, 20, s)
    assert passes.forward == passes.backward == 21 * len(x)
    found = flips.distances < INF
    assert found.any()
    assert (norm(flips.points - x, s)[found] <= radius * (1 + 1e-6)).all()
    assert ((flips.points >= 0) & (flips.points <= 1)).all()
    assert (model(flips.points[found]).argmax(1) != y[found]).all()


@pytest.mark.parametrize("steps", [5, 60])
def test_finished_images_are_left_alone_and_nothing_else_changes(steps):
    model = copy.deepcopy(reference_network("adversarial")).double()  # in which batches of another size round alike
    x, y = correct_images(model, 30)
    with PassCounter(model) as all_passes:
        nearest = searched(model, x, y, 0.1, x, steps)
    with PassCounter(model) as passes:
        first = searched(model, x, y, 0.1, x, steps, goal=0.1 * (1 + 1e-6))
    assert torch.equal(first.distances < INF, nearest.distances < INF)
    assert (first.distances >= nearest.distances).all()
    assert passes.forward < all_passes.forward == (steps + 1) * len(x)
    assert (norm(first.points - x, INF) <= 0.1 * (1 + 1e-6)).all()


def test_a_search_ends_when_all_images_are_finished():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(5, 1, 2, 2)
    y = 1 - model(x).argmax(1)
    with PassCounter(model) as passes:
        searched(model, x, y, 0.3, x, 100, goal=0.3)
    assert passes.forward == (22 + 1) * 5


class Waves(nn.Module):
    """Class 1 wins on one high wave of the first pixel alone, beyond many low ones with as steep sides."""

    def forward(self, x):
        u = (x.flatten(1)[:, 0] - 0.5) / 0.1
        lead = 1.5 - torch.sin(40 * u) - u
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def test_long_steps_leave_hills_that_momentum_stays_on():
    """Of 40 starts inside the radius steps that begin with twice the radius find the wave that is high enough."""
    x = torch.full((40, 1, 1, 1), 0.5)
    y = torch.zeros(40, dtype=torch.int64)
    start = x + torch.linspace(-0.1, 0.0, 40).view(-1, 1, 1, 1)
    ours = searched(Waves(), x, y, 0.1, start, 50).distances.isfinite().sum()
    flips = NearestFlips(GroundNorm(INF), Waves(), x, y, None)
    with attack_mode(flips.model):
        AimedSearch(flips, torch.full((40,), 0.1, dtype=torch.float64), 0.1).run(ce, y, start, 50)
    assert ours > flips.distances.isfinite().sum()


@pytest.mark.parametrize("goal", [0.0, 0.3])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images_and_two_classes(count, goal):
    torch.manual_seed(count)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(count, 1, 2, 2)
    flips = searched(model, x, model(x).argmax(1), 0.3, x, 20, goal=goal)
    reached = flips.distances < INF
    assert (model(flips.points).argmax(1) != model(x).argmax(1)).equal(reached)


def test_without_gradient_nothing_moves():
    x = torch.rand(5, 1, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    flips = searched(model, x, torch.zeros(5, dtype=torch.int64), 0.3, x, 7)
    assert flips.distances.isinf().all()
    assert torch.equal(flips.points, x)

"""Elimination of rivals: it flips what other losses do not see, and spends its steps on the closest pairs."""

import math

import pytest
import torch
from oracles import further, norm, reference_images, reference_network
from torch import nn

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.elimination import Elimination, Heat
from wdro_train.attacks.rounds import AnyRival, Round, Wanted
from wdro_train.attacks.starts import AtRandom, AtTheImage
from wdro_train.theory.losses import margin

INF = math.inf
HEATS = (Heat(1.0, 4, AtTheImage()), Heat(0.2, 6, AtTheImage()), Heat(0.05, 6, AtRandom()))


def go(one, s, model, x, y, wanted, steps=1, seed=0):
    """The first search, and `one` after it."""
    found = MinimalDistance(norm=s, steps=steps)(model, x, y)
    generator = torch.Generator().manual_seed(seed)
    points, distances = further(
        one, s, model, x, y, found.x_adv, found.distances, wanted, generator=generator, batch_size=7
    )
    return found, points, distances


def alone(one, model, x, radius):
    """Distances after `one`, in l_inf, of images of label 0 of which no flip was known."""
    none = torch.full((len(x),), INF, dtype=torch.float64)
    labels = torch.zeros(len(x), dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    return further(one, INF, model, x, labels, x, none, Wanted(radius, radius), generator=generator)[1]


@pytest.mark.parametrize("s", [INF, 2, 1])
@pytest.mark.parametrize("pointwise", [True, False])
def test_points_are_what_they_say_and_no_distance_grows(s, pointwise):
    x, y = (part[:20] for part in reference_images())
    model = reference_network("adversarial")
    first = MinimalDistance(norm=s, steps=3)(model, x, y).distances
    reach = float(first[first > 0].median())
    wanted = Wanted(reach, reach if pointwise else 0.0)
    found, points, distances = go(Elimination("all", HEATS), s, model, x, y, wanted, steps=3)
    fell = distances < found.distances
    assert fell.any()
    assert (distances <= found.distances).all()
    assert (distances[fell] <= reach).all()
    assert ((points >= 0) & (points <= 1)).all()
    torch.testing.assert_close(norm(points - x, s)[fell], distances[fell], rtol=1e-5, atol=0)
    assert (margin(model(points), y)[fell] <= 1e-5).all()
    assert torch.equal(points[~fell], found.x_adv[~fell])
    if pointwise:
        assert torch.equal(distances[found.distances <= reach], found.distances[found.distances <= reach])
    again = go(Elimination("all", HEATS), s, model, x, y, wanted, steps=3)
    assert torch.equal(again[2], distances)
    assert torch.equal(again[1], points)


class Hidden(nn.Module):
    """The first rival is close and does not move; the fourth is far away at the image and wins after 0.05 in l_inf."""

    def forward(self, x):
        u = x.flatten(1).mean(1) - 0.5
        fixed = torch.ones_like(u)
        return torch.stack([fixed, 0.9 * fixed, 0.5 * fixed, 0.2 * fixed, 60 * u - 2 + 0 * fixed], 1)


def test_a_rival_that_the_logits_do_not_show_is_found():
    """1 = 60 u - 2 at u = 0.05; no margin, softened or not, has a gradient that shows the way there from the image."""
    one = Elimination("all", (Heat(1.0, 5, AtTheImage()), Heat(0.25, 10, AtTheImage())))
    other = Round("margin", AtTheImage(), AnyRival("margin"), 10, 3.0)
    distances, stuck = (alone(search, Hidden(), torch.full((6, 1, 2, 2), 0.5), 0.06) for search in (one, other))
    assert (distances <= 0.06).all()
    assert (distances >= 0.05 - 1e-6).all()
    assert torch.isinf(stuck).all()


class Slopes(nn.Module):
    """The first pixel says how far an image is from a flip to rival 1, which the second pixel decides."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        if torch.is_grad_enabled():
            self.seen.append(x[:, 0, 0, 0].detach().clone())
        which, u = x[:, 0, 0, 0], x[:, 0, 0, 1]
        lead = 0.3 + which - 0 * u
        return torch.stack([lead, u, torch.zeros_like(u), u - 9, u - 9], 1)


def test_steps_go_to_the_closest_pairs():
    """Of 24 pairs the second heat has the ceil(0.1 * 24) = 3 closest, which are the darkest images and rival 1."""
    x = torch.zeros(6, 1, 1, 2)
    x[:, 0, 0, 0] = torch.arange(6) / 20
    y = torch.zeros(6, dtype=torch.int64)
    model = Slopes()
    one = Elimination("all", (Heat(1.0, 3, AtTheImage()), Heat(0.1, 5, AtTheImage(), 0.0)))
    further(one, 2, model, x, y, x, torch.full((6,), INF, dtype=torch.float64), Wanted(0.1, 0.1))
    first, second = model.seen[: 4 * 3], model.seen[4 * 3 :]
    assert all(len(rows) == 6 for rows in first)
    assert all(len(rows) == 3 for rows in second)
    assert len(second) == 5
    torch.testing.assert_close(second[0].sort().values, x[:3, 0, 0, 0], atol=0.02, rtol=0)


def test_two_classes_have_one_rival():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    x = torch.rand(5, 1, 2, 2)
    y = model(x).argmax(1)
    found, _, distances = go(Elimination("all", HEATS), INF, model, x, y, Wanted(1.0, 0.0))
    assert (distances <= found.distances).all()

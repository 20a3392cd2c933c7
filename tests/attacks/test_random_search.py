"""Random search: it flips what no gradient shows, inside radius and box, and asks nothing of what is flipped."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import further, norm, reference_images, reference_network
from torch import nn

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.elimination import Elimination, Heat, RandomHeat
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.random_search import RandomSearch, _squares
from wdro_train.attacks.rounds import Wanted
from wdro_train.attacks.starts import AtStripes, AtTheFlip, AtTheImage
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.losses import margin
from wdro_train.utils.pass_counter import PassCounter

INF = math.inf


class Stairs(nn.Module):
    """Label 0 loses to class 1 where the mean brightness is 0.53, in steps, so that every gradient is zero."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        steps = torch.floor(x.flatten(1).mean(1) * 2000) / 2000
        return torch.stack([torch.full_like(steps, 0.53), steps + 0 * x.flatten(1).sum(1)], 1)


def searched(model, x, y, radius, search, start, seed=0, s=INF):
    flips = NearestFlips(GroundNorm(s), model, x, y, None)
    radii = torch.full((len(x),), radius, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with attack_mode(model):
        search(flips, radii, start(flips, radii, generator), generator)
    return flips


@pytest.mark.parametrize("start", [AtTheImage(), AtStripes()])
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 8), (30,), (4, 9)])
def test_flips_what_has_no_gradient(shape, start):
    """At radius 0.06 three quarters of the pixels must become bright; stripes begin with about half of them."""
    x = torch.full((5, *shape), 0.5)
    y = torch.zeros(5, dtype=torch.int64)
    flips = searched(Stairs(), x, y, 0.06, RandomSearch(400, 0.3), start)
    assert (flips.distances <= 0.06 + 1e-6).all()
    assert (flips.distances >= 0.03 - 1e-6).all()
    assert MinimalDistance(norm=INF)(Stairs(), x, y).distances.isinf().all()
    few = torch.full((5,), INF, dtype=torch.float64)
    last = (RandomHeat(1.0, RandomSearch(400, 0.3), start),)
    for one in (Elimination("all", (Heat(1.0, 2, AtTheImage()),)), Elimination("all", (), last)):
        generator = torch.Generator().manual_seed(0)
        _, distances = further(one, INF, Stairs(), x, y, x, few, Wanted(0.06, 0.06), generator=generator)
        assert (distances <= 0.06).all() == bool(one.last)


@pytest.mark.parametrize("start", [AtTheFlip(), AtStripes()])
def test_points_are_flips_within_the_radius_and_the_box(start):
    x, y = (part[:40] for part in reference_images())
    model = reference_network("adversarial")
    first = MinimalDistance(norm=INF, steps=3)(model, x, y)
    kept = first.clean_correct.nonzero().squeeze(1)
    x, y = x[kept], y[kept]
    radius = float(first.distances[kept].median())
    flips, again = (searched(model, x, y, radius, RandomSearch(60, 0.3), start) for _ in range(2))
    found = flips.distances.isfinite()
    assert found.any()
    assert not found.all()
    torch.testing.assert_close(norm(flips.points - x, INF)[found], flips.distances[found], rtol=1e-6, atol=0)
    assert (flips.distances[found] <= radius + 1e-6).all()
    assert ((flips.points >= 0) & (flips.points <= 1)).all()
    with torch.no_grad():
        assert (margin(model(flips.points), y)[found] <= 1e-5).all()
    assert torch.equal(flips.points, again.points)
    assert not torch.equal(flips.points, searched(model, x, y, radius, RandomSearch(60, 0.3), start, seed=1).points)


def test_goes_forward_only_and_leaves_flipped_images_alone():
    """Image 0 is flipped at once, image 1 never: the first of them is asked up to the look after 50 queries."""
    x = torch.cat([torch.full((1, 1, 4, 4), 0.55), torch.full((1, 1, 4, 4), 0.1)])
    y = torch.zeros(2, dtype=torch.int64)
    model = Stairs()
    with PassCounter(model) as passes:
        searched(model, x, y, 0.06, RandomSearch(120, 0.3), AtTheImage())
    assert passes.backward == 0
    assert model.seen == [2] * 51 + [1] * 70
    assert RandomSearch(120, 0.3).passes == 60


@pytest.mark.parametrize("s", [1, 2])
def test_other_norms_have_none(s):
    x = torch.full((3, 1, 4, 4), 0.5)
    model = Stairs()
    flips = searched(model, x, torch.zeros(3, dtype=torch.int64), 10.0, RandomSearch(50, 0.3), AtTheImage(), s=s)
    assert flips.distances.isinf().all()
    assert not model.seen


class NeverEmpty(Stairs):
    def forward(self, x):
        assert len(x), "an empty batch"
        return super().forward(x)


def test_asks_nothing_where_the_closest_have_flipped():
    """The first random search flips all images, so that the second has none: networks may refuse an empty batch."""
    x, y = torch.full((5, 1, 4, 4), 0.5), torch.zeros(5, dtype=torch.int64)
    none = torch.full((5,), INF, dtype=torch.float64)
    one = Elimination("all", (), (RandomHeat(1.0, RandomSearch(400, 0.3), AtTheImage()),) * 2)
    generator = torch.Generator().manual_seed(0)
    _, distances = further(one, INF, NeverEmpty(), x, y, x, none, Wanted(0.06, 0.06), generator=generator)
    assert (distances <= 0.06).all()


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), area=st.floats(1e-4, 1.0), seed=st.integers(0, 1000))
def test_squares_have_the_area_and_lie_anywhere(shape, area, seed):
    images = torch.zeros(64, *shape)
    height, width = shape[-2:] if len(shape) > 1 else (1, shape[0])
    inside = _squares(images, area, torch.Generator().manual_seed(seed))
    inside = inside.expand(images.shape).reshape(64, -1, height, width)
    assert torch.equal(inside, inside[:, :1].expand(inside.shape))
    rows, columns = inside[:, 0].any(2), inside[:, 0].any(1)
    assert torch.equal(inside[:, 0], rows[:, :, None] & columns[:, None, :])  # a rectangle
    for side in (rows, columns):
        lengths = side.sum(1)
        assert (lengths == lengths[0]).all()
        assert lengths[0] >= 1
        assert ((side[:, 1:] & ~side[:, :-1]).sum(1) + side[:, 0].long() == 1).all()  # in one piece
    pixels, wanted = int(inside[0, 0].sum()), area * height * width
    # Each side is rounded to a whole number of pixels, of at least one.
    assert abs(pixels - wanted) <= max(0.5 * (height + width) + 0.25, 1)
    if pixels == 1 and height * width <= 9:
        assert inside[:, 0].any(0).sum() > 1 or height * width == 1  # not always in one place

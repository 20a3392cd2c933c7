"""Further rounds of search: what they find is what it says, is asked for only where it matters, and is repeatable."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import further, norm, reference_images, reference_network
from torch import nn

from wdro_train.attacks import MinimalDistance, minimum_norm_rounds
from wdro_train.attacks.minimum_norm_rounds import MinimumNorm
from wdro_train.attacks.nearby_rounds import Nearby
from wdro_train.attacks.rounds import AdaptiveRound, AnyRival, OneRival, Round, Wanted
from wdro_train.attacks.starts import AroundTheFlip, AtRandom, AtTheFlip, AtTheImage
from wdro_train.theory.losses import margin
from wdro_train.utils.pass_counter import PassCounter

INF = math.inf
ROUNDS = [
    Round("flip", AtTheFlip(), AnyRival("margin"), 10),
    Round("image", AtTheImage(), AnyRival("soft_margin"), 10, 3.0),
    Round("entropy", AtRandom(), AnyRival("ce"), 10),
    Round("ratio", AtRandom(), AnyRival("dlr"), 10),
    Round("rival", AtTheImage(), OneRival(1), 10),
    AdaptiveRound("adaptive", AtRandom(), AnyRival("ce"), 20),
    MinimumNorm("minimum norm, random", AtRandom(), AnyRival("soft_margin"), 10),
    MinimumNorm("minimum norm, rival", AtTheImage(), OneRival(0), 10),
    Round("around the flip", AroundTheFlip(), AnyRival("margin"), 10),
    MinimumNorm("minimum norm, around the flip", AroundTheFlip(), AnyRival("soft_margin"), 10),
]
DELTA = {INF: 0.1, 2: 1.0, 1: 5.0}


def searched(s, count=20):
    x, y = (part[:count] for part in reference_images())
    model = reference_network("adversarial")
    found = MinimalDistance(norm=s, steps=3)(model, x, y)
    return model, x, y, found


def go(one, s, model, x, y, found, wanted, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return further(one, s, model, x, y, found.x_adv, found.distances, wanted, generator=generator, **kwargs)


@pytest.mark.parametrize("one", ROUNDS, ids=lambda one: one.kind)
@pytest.mark.parametrize("s", [INF, 2, 1])
def test_points_are_what_they_say_and_no_distance_grows(s, one):
    model, x, y, found = searched(s)
    reach = float(found.distances.median())
    if s == 1 and isinstance(one, Round):  # sparse steps from elsewhere need as many as `auto` takes
        one = replace(one, steps=30, size=3.0)
    points, distances = go(one, s, model, x, y, found, Wanted(reach, 0.0))
    fell = distances < found.distances
    assert fell.any()
    assert (distances <= found.distances).all()
    if isinstance(one, Round | AdaptiveRound):  # which does not look beyond it
        assert (distances[fell] <= reach).all()
    assert ((points >= 0) & (points <= 1)).all()
    torch.testing.assert_close(norm(points - x, s)[fell], distances[fell], rtol=1e-5, atol=0)
    # Flips lie within the resolution of float32 of the boundary, and logits of another batch are rounded otherwise.
    assert (margin(model(points), y)[fell] <= 1e-5).all()
    assert torch.equal(points[~fell], found.x_adv[~fell])
    assert torch.equal(distances == 0, found.distances == 0)


@pytest.mark.parametrize("one", [ROUNDS[0], ROUNDS[-1]], ids=lambda one: one.kind)
@pytest.mark.parametrize("s", [INF, 2])
def test_only_images_without_a_flip_at_the_goal_are_searched(s, one):
    model, x, y, found = searched(s)
    delta = float(found.distances[found.distances > 0].median())
    wanted, seen = Wanted(delta, delta), []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    try:
        _, distances = go(one, s, model, x, y, found, wanted)
    finally:
        handle.remove()
    assert max(seen) == int((found.distances > delta).sum())
    near = found.distances <= delta
    assert torch.equal(distances[near], found.distances[near])
    if isinstance(one, Round):
        assert (distances[distances < found.distances] <= delta).all()


@pytest.mark.parametrize("s", [INF, 2])
def test_flips_far_beyond_the_known_ones_are_not_brought_down_and_nothing_is_lost(s, monkeypatch):
    x, y = (part[:100] for part in reference_images())
    model = reference_network("adversarial")
    found = MinimalDistance(norm=s, steps=30)(model, x, y)
    one = MinimumNorm("3rd rival", AtTheImage(), OneRival(2), 30)
    passes, distances = [], []
    for reach in (minimum_norm_rounds._IN_REACH, INF):
        monkeypatch.setattr(minimum_norm_rounds, "_IN_REACH", reach)
        with PassCounter(model) as counter:
            distances.append(go(one, s, model, x, y, found, Wanted(INF, 0.0))[1])
        passes.append(counter.pairs)
    assert (distances[0] < found.distances).any()
    torch.testing.assert_close(*distances, rtol=1e-5, atol=0)
    assert passes[0] < 0.95 * passes[1]


def test_nothing_to_ask_is_nothing_done():
    model, x, y, found = searched(INF)
    seen = []
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    try:
        points, distances = go(ROUNDS[0], INF, model, x, y, found, Wanted(2.0, 2.0))
    finally:
        handle.remove()
    assert not seen
    assert torch.equal(points, found.x_adv)
    assert torch.equal(distances, found.distances)


@pytest.mark.parametrize("s", [INF, 2])
def test_the_generator_decides(s):
    model, x, y, found = searched(s, 20)
    wanted = Wanted(DELTA[s], 0.0)
    first, again, other = (go(ROUNDS[2], s, model, x, y, found, wanted, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Kinked(nn.Module):
    """Margin 1 - |x_0 - x_1| summed with a slope along both: signs of gradients turn round at the kink."""

    def forward(self, x):
        u = x.flatten(1) - 0.5
        lead = 0.08 + 4 * (u[:, 0] - u[:, 1]).abs() - u[:, 0] - 0.5 * u[:, 1]
        return torch.stack([lead, torch.zeros_like(lead)], 1)


def test_smooth_steps_follow_a_kink():
    """On the kink u_0 = u_1 the margin is 0.08 - 1.5 u: it is crossed at 0.0533, and only near the kink before 0.06."""
    x = torch.full((4, 1, 1, 2), 0.5)
    y = torch.zeros(4, dtype=torch.int64)
    model = Kinked()
    found = MinimalDistance(norm=INF, steps=1)(model, x, y)
    one = Round("flip", AtTheFlip(), AnyRival("margin"), 40)
    _, distances = go(one, INF, model, x, y, found, Wanted(0.06, 0.06))
    assert (distances <= 0.06).all()
    assert (distances >= 0.08 / 1.5 - 1e-6).all()


@pytest.mark.parametrize("s", [INF, 2])
def test_a_run_from_the_image_leaves_the_valley_of_the_flip_that_is_known(s):
    """Two ways to flip: up by 0.3, which is known, and down by 0.1, whose slope is steeper but only below -0.02."""

    class Valleys(nn.Module):
        def forward(self, x):
            u = x.flatten(1)[:, 0] - 0.5
            far, near = 10 * u - 3, torch.where(u < -0.02, -30 * u - 3, -2.4 - 2 * u)
            zero = torch.zeros_like(u)
            return torch.stack([zero, far, near], 1)

    x, y = torch.full((3, 1, 1, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    flip = x.clone()
    flip[..., 0] = 0.81
    known = torch.full((3,), 0.31, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    rounds = (
        Round("flip", AtTheFlip(), AnyRival("margin"), 30, 3.0),
        MinimumNorm("1st", AtTheImage(), OneRival(0), 30),
    )
    stays, leaves = (
        further(one, s, Valleys(), x, y, flip, known, Wanted(1.0, 0.0), generator=generator)[1] for one in rounds
    )
    torch.testing.assert_close(stays, torch.full_like(stays, 0.3), rtol=1e-4, atol=0)
    torch.testing.assert_close(leaves, torch.full_like(leaves, 0.1), rtol=1e-4, atol=0)


def test_images_that_no_gradient_moves_stay_where_they_are():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    x, y = torch.rand(5, 1, 2, 2), torch.zeros(5, dtype=torch.int64)
    found = MinimalDistance(norm=INF, steps=1)(model, x, y)
    for one in ROUNDS:
        points, distances = go(one, INF, model, x, y, found, Wanted(0.3, 0.3))
        assert torch.equal(points, x)
        assert torch.isinf(distances).all()


@pytest.mark.parametrize("s", [INF, 2])
def test_nearby_rounds_search_images_just_beyond_the_radius_and_no_others(s):
    model, x, y, found = searched(s)
    delta = float(found.distances[found.distances > 0].median())
    wanted, seen = Wanted(delta, delta), []
    near = Nearby("near", (ROUNDS[0], ROUNDS[1]), band=1.3, most=1.0)
    beyond = (found.distances > delta) & (found.distances <= 1.3 * delta)
    assert torch.equal(near.asked(wanted, found.distances), beyond)
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    try:
        points, distances = go(near, s, model, x, y, found, wanted)
    finally:
        handle.remove()
    assert max(seen) == int(beyond.sum()) > 0
    assert torch.equal(distances[~beyond], found.distances[~beyond])
    assert torch.equal(points[~beyond], found.x_adv[~beyond])
    fell = distances < found.distances
    assert fell.any()
    assert (distances[fell] <= delta).all()
    torch.testing.assert_close(norm(points - x, s)[fell], distances[fell], rtol=1e-5, atol=0)
    assert (margin(model(points), y)[fell] <= 1e-5).all()


def test_nearby_rounds_ask_nobody_where_no_radius_is_fixed():
    distances = torch.tensor([0.0, 0.05, 0.1, 0.11, INF], dtype=torch.float64)
    for wanted in (Wanted(0.1, 0.0), Wanted(INF, 0.1)):
        assert not Nearby("near", (ROUNDS[0],)).asked(wanted, distances).any()


def test_nearby_rounds_ask_at_most_a_share_the_nearest_ones():
    """Of the 40 images without a flip at 0.1 at most ceil(0.06 * 40) = 3."""
    distances = torch.linspace(0.11, 0.112, 42, dtype=torch.float64)
    distances[:2], distances[20], distances[30] = 0.1, 0.105, 0.104
    asked = Nearby("near", (ROUNDS[0],), most=0.06, least=2).asked(Wanted(0.1, 0.1), distances)
    assert asked.nonzero().flatten().tolist() == [2, 20, 30]
    assert Nearby("near", (ROUNDS[0],), most=0.06, least=7).asked(Wanted(0.1, 0.1), distances).sum() == 7
    assert not Nearby("near", (ROUNDS[0],), band=1.03, most=0.06).asked(Wanted(0.1, 0.1), distances).any()
    assert Nearby("near", (ROUNDS[0],), most=1.0).asked(Wanted(0.1, 0.1), distances).sum() == 40


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.sampled_from([0, 3, 20]))
def test_nearby_rounds_ask_the_same_images_in_whatever_batches(seed, images, size, least):
    distances = 0.1 * torch.rand(images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.05
    wanted, near = Wanted(0.1, 0.1), Nearby("near", (ROUNDS[0],), band=1.3, most=0.3, least=least)
    whole = near.asked(wanted, distances)
    batch = near.of_set(wanted, distances)
    assert torch.equal(torch.cat([batch.asked(wanted, part) for part in distances.split(size)]), whole)
    without = int((distances > 0.1).sum())
    assert whole.sum() == min(
        max(math.ceil(0.3 * without), least), int(((distances > 0.1) & (distances <= 0.13)).sum())
    )


def test_images_as_near_as_the_last_one_are_asked_for():
    distances = torch.tensor([0.11] * 5, dtype=torch.float64)
    assert Nearby("near", (ROUNDS[0],), most=0.2, least=0).asked(Wanted(0.1, 0.1), distances).all()

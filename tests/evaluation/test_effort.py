"""How long the search goes on: which images it asks about, and when it ends, whatever the ranks and the kills."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import on_ranks, reference_images, reference_network

from wdro_train.attacks import MinimalDistance, minimum_norm_rounds
from wdro_train.attacks.elimination import Elimination, Heat, RandomHeat
from wdro_train.attacks.marginal_rounds import BeyondReach, WithinReach
from wdro_train.attacks.minimum_norm_rounds import MinimumNorm
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.nearby_rounds import Nearby
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.random_search import RandomSearch
from wdro_train.attacks.rounds import AnyRival, Round
from wdro_train.attacks.starts import AtRandom, AtStripes, AtTheFlip
from wdro_train.evaluation import robustness_curve
from wdro_train.evaluation.distances import find_distances, flipped_points
from wdro_train.evaluation.effort import FirstSearch, UntilConverged, chosen_effort, still_wanted
from wdro_train.evaluation.engine import Engine, Place
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.turns import equal_turns, marginal_turns, pointwise_turns, turns
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

INF = math.inf
IMAGES = 24
QUICK = MinimalDistance(norm=INF, steps=3)
TURNS = (
    (
        Round("flip", AtTheFlip(), AnyRival("margin"), 5, 3.0),
        Round("random", AtRandom(), AnyRival("soft_margin"), 5, 3.0),
    ),
)
SHORT = UntilConverged(lambda ball: TURNS, budget=lambda ball: 100.0)
HEATS = (Heat(1.0, 3, AtRandom()), Heat(0.2, 5, AtRandom()))
LAST = (RandomHeat(0.5, RandomSearch(20, 0.3), AtStripes()),)
POINTWISE = (
    Nearby("near", TURNS[0]),
    MinimumNorm("again", AtRandom(), AnyRival("soft_margin"), 5),
    Elimination("all", HEATS, LAST),
)
ELIMINATING = UntilConverged(lambda ball: (POINTWISE,), budget=lambda ball: 200.0)
MARGINAL = UntilConverged(
    lambda ball: (
        (
            TURNS[0][1],
            WithinReach("within", MinimumNorm("again", AtRandom(), AnyRival("soft_margin"), 5)),
            WithinReach("flip, within", TURNS[0][0]),
            BeyondReach("beyond", Elimination("all", HEATS)),
        ),
    ),
    budget=lambda ball: 200.0,
)
BALLS = [WassersteinBall(INF, INF, 0.1), WassersteinBall(2, INF, 0.05), WassersteinBall(1, INF, 0.02)]


def batches(n=IMAGES, size=9):
    x, y = reference_images()
    return list(zip(x[:n].split(size), y[:n].split(size), strict=True))


def engine(folder, **kwargs):
    return Engine(reference_network("adversarial"), batches(), PieceStore(folder, {}), **kwargs)


@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: f"W_{ball.p:g}")
def test_rounds_lower_the_accuracy_and_say_how(tmp_path, ball):
    ours = engine(tmp_path)
    with PassCounter(ours.model) as passes:
        found = SHORT(ours, QUICK, ball)
    first = find_distances(ours, QUICK)
    assert (found.distances <= first.distances).all()
    accuracies = [one.accuracy for one in found.rounds]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == first.curve.accuracy(ball.delta, ball.p)
    assert accuracies[-1] == found.curve.accuracy(ball.delta, ball.p) < accuracies[0]
    assert [one.kind for one in found.rounds[:3]] == ["minimum norm", "flip", "random"]
    assert not found.capped
    quiet = accuracies[-5] - accuracies[-1]  # two turns of two rounds
    assert quiet < 2e-3
    assert all(one.improved <= one.asked <= IMAGES for one in found.rounds)
    # What the evaluation counts is what the search took; a look at each flip's class comes on top.
    assert found.passes * IMAGES <= passes.pairs <= found.passes * IMAGES + IMAGES * len(found.rounds)


@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: f"W_{ball.p:g}")
def test_flips_of_every_round_are_kept(tmp_path, ball):
    ours = engine(tmp_path)
    found = SHORT(ours, QUICK, ball)
    assert any(one.improved for one in found.rounds[1:])
    points = [flipped_points(ours, found.stage, Place.of(k, x, y), x, y) for k, (x, y) in enumerate(ours.batches)]
    x = torch.cat([part for part, _ in ours.batches])
    reached = np.isfinite(found.distances)
    distances = GroundNorm(INF).distances(torch.cat(points) - x).numpy()
    np.testing.assert_allclose(distances[reached], found.distances[reached], rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        logits = ours.model(torch.cat(points))
    moved = (found.distances > 0) & reached
    assert (found.rivals[moved] != found.labels[moved]).all()
    rivals = logits.gather(1, torch.from_numpy(found.rivals)[:, None]).squeeze(1)
    assert (rivals >= logits.gather(1, torch.from_numpy(found.labels)[:, None]).squeeze(1) - 1e-4)[moved].all()


@pytest.mark.parametrize(
    ("ball", "effort"), [(BALLS[0], SHORT), (BALLS[1], SHORT), (BALLS[0], ELIMINATING), (BALLS[1], MARGINAL)]
)
@pytest.mark.slow
@pytest.mark.covers
def test_ranks_agree_with_one_process(tmp_path, ball, effort):
    def work(reducer, model):
        ours = Engine(model, batches(), PieceStore(tmp_path / "two", {}), reducer=reducer)
        found = effort(ours, QUICK, ball)
        return found.distances, found.rounds

    alone = effort(engine(tmp_path / "one"), QUICK, ball)
    for distances, rounds in on_ranks(2, work, reference_network("adversarial")):
        np.testing.assert_array_equal(distances, alone.distances)
        assert rounds == alone.rounds


class _KilledError(Exception):
    pass


@pytest.mark.parametrize(
    ("ball", "effort"),
    [(BALLS[0], SHORT), (BALLS[0], ELIMINATING), (BALLS[1], MARGINAL)],
    ids=["rounds", "elimination", "marginal"],
)
@pytest.mark.parametrize("after", [2, pytest.param(4, marks=pytest.mark.slow), 7])
def test_goes_on_where_it_was_killed(tmp_path, after, ball, effort):
    """Killed when so many pieces are there, in any round: the same distances, and no finished piece is made again."""
    whole = effort(engine(tmp_path / "whole"), QUICK, ball)
    saved, limit = [], after

    class Store(PieceStore):
        def save(self, stage, piece, batch, arrays):
            if len(saved) == limit:
                raise _KilledError
            saved.append((stage, piece))
            super().save(stage, piece, batch, arrays)

    model = reference_network("adversarial")
    with pytest.raises(_KilledError):
        effort(Engine(model, batches(), Store(tmp_path / "killed", {})), QUICK, ball)
    before = list(saved)
    saved.clear()
    limit = None
    again = effort(Engine(model, batches(), Store(tmp_path / "killed", {})), QUICK, ball)
    assert not set(before) & set(saved)
    np.testing.assert_array_equal(again.distances, whole.distances)
    assert again.rounds == whole.rounds


@pytest.mark.slow
def test_from_python_a_threat_makes_the_search_go_on():
    model = reference_network("adversarial")
    ball = WassersteinBall(INF, INF, 0.1)
    once = robustness_curve(model, batches(), norm=INF, steps=3)
    more = robustness_curve(model, batches(), norm="inf", steps=3, threat=ball)
    assert (more.distances <= once.distances).all()
    assert more.accuracy(0.1, INF) < once.accuracy(0.1, INF)
    with pytest.raises(UserError, match="norm=2 is not that of the threat"):
        robustness_curve(model, batches(), norm=2, threat=ball)


def test_batches_do_not_change_which_images_are_just_beyond_the_radius(tmp_path):
    near = Nearby("near", TURNS[0], band=3.0, most=0.2, least=2)
    rounds = []
    for size in (3, IMAGES):
        ours = Engine(reference_network("adversarial"), batches(size=size), PieceStore(tmp_path / str(size), {}))
        rounds.append(UntilConverged(lambda ball: ((near,),), tolerance=1.0)(ours, QUICK, BALLS[0]).rounds)
    assert rounds[0][1].asked == rounds[1][1].asked
    assert 0 < rounds[0][1].asked <= 0.2 * IMAGES + 1


@pytest.mark.parametrize("budget", [1.0, 20.0, 30.0, 45.0])
@pytest.mark.parametrize("ball", BALLS[:2], ids=lambda ball: f"W_{ball.p:g}")
def test_no_round_begins_that_would_exceed_the_budget(tmp_path, ball, budget):
    """Rounds here take 5 steps of at most all images, and what they find up to 14 passes to bring to the boundary."""
    found = UntilConverged(lambda ball: TURNS, tolerance=0.0, budget=lambda ball: budget)(engine(tmp_path), QUICK, ball)
    assert found.capped
    left = float(still_wanted(found.curve, ball).asked(torch.from_numpy(found.distances)).double().mean())
    first = found.rounds[0].passes
    if len(found.rounds) > 1:
        assert found.rounds[-2].passes - first + 5 * found.rounds[-1].asked / IMAGES <= budget * (left + 1 / IMAGES)
    assert found.passes - first + 5 * left > budget * left


@pytest.mark.parametrize(
    ("norm", "kinds"), [(INF, (*equal_turns(9), *marginal_turns(9), *pointwise_turns(9))), (2.0, equal_turns(9))]
)
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_rounds_know_what_they_take(norm, kinds, classes):
    """Counted, where nothing is found that would have to be brought down to the boundary."""
    torch.manual_seed(0)
    x = torch.rand(400, 1, 4, 4)
    y = torch.zeros(400, dtype=torch.int64)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, classes))
    with torch.no_grad():
        model[1].bias[0] += 100
    ground = GroundNorm(norm)
    for one in {one.kind: one for turn in kinds for one in turn}.values():
        known = NearestFlips(ground, model, x, y, None)
        known.distances = torch.full((400,), 0.51, dtype=torch.float64)
        if isinstance(one, WithinReach):
            wanted = still_wanted(RobustnessCurve(known.distances.numpy()), WassersteinBall(2, norm, 0.3))
        else:
            wanted = still_wanted(RobustnessCurve([1.0] * 400), WassersteinBall(INF, norm, 0.5))
        asked = int(one.asked(wanted, known.distances).sum())
        assert asked
        with PassCounter(model) as passes, attack_mode(model):
            one(known, wanted, generator=torch.Generator().manual_seed(0))
        inner = one.one if isinstance(one, WithinReach) else one
        descent = minimum_norm_rounds._DESCENT if isinstance(inner, MinimumNorm) else 0.0
        expected = (one.passes(classes) - descent) * asked
        assert 0.9 * expected <= passes.pairs <= 1.2 * expected + 2 * asked


def test_a_flawless_network_is_left_alone(tmp_path):
    """Nothing is asked where every image has a flip within the radius, or none is correct."""
    found = SHORT(engine(tmp_path), QUICK, WassersteinBall(INF, INF, 1.0))
    assert len(found.rounds) == 1
    found = SHORT(engine(tmp_path), QUICK, WassersteinBall(INF, INF, 0.0))
    assert len(found.rounds) == 1


distances = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 2.0), st.just(INF)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(d=distances, p=st.sampled_from([1.0, 2.0, INF]), delta=st.floats(0.01, 1.5), data=st.data())
def test_only_wanted_flips_change_the_worst_case(d, p, delta, data):
    """Shorten one distance: the accuracy falls only if the image was asked for and the flip is within reach."""
    before = RobustnessCurve(d)
    wanted = still_wanted(before, WassersteinBall(p, INF, delta))
    i = data.draw(st.integers(0, len(d) - 1))
    if d[i] == 0:
        return
    shorter = data.draw(st.floats(0.001, 1.0)) * min(d[i], 3.0)
    fell = before.accuracy(delta, p) - RobustnessCurve([*d[:i], shorter, *d[i + 1 :]]).accuracy(delta, p)
    if fell > 1e-9:
        assert bool(wanted.asked(torch.tensor(d))[i])
        assert shorter <= wanted.reach * (1 + 1e-9)


def test_each_threat_has_turns_of_its_own():
    def kinds(p, norm):
        return {type(one) for turn in turns(30, WassersteinBall(p, norm, 0.1)) for one in turn}

    assert {WithinReach, BeyondReach} < kinds(2, INF) == kinds(1, 1)
    assert Nearby in kinds(INF, INF)
    assert kinds(INF, 2) == {MinimumNorm, Round}


@settings(max_examples=200, deadline=None)
@given(d=distances, p=st.sampled_from([1.0, 2.0, 5.0]), delta=st.floats(0.01, 1.5))
def test_every_image_that_matters_is_searched_in_one_of_the_rounds(d, p, delta):
    """The images within and beyond the reach are different ones, and those of neither could save hardly anything."""
    d = [*d, 0.5, 0.5]
    wanted = still_wanted(RobustnessCurve(d), WassersteinBall(p, INF, delta))
    rows = torch.tensor(d, dtype=torch.float64)
    within = WithinReach("within", TURNS[0][0]).asked(wanted, rows)
    beyond = BeyondReach("beyond", TURNS[0][0]).asked(wanted, rows)
    assert not (within & beyond & rows.isfinite()).any()
    skipped = wanted.asked(rows) & ~within & ~beyond
    shorter = torch.where(skipped, 1e-9, rows).tolist()
    saved = RobustnessCurve(d).accuracy(delta, p) - RobustnessCurve(shorter).accuracy(delta, p)
    assert saved <= 0.02 * float((rows <= wanted.reach).double().mean()) + 1e-9
    if math.isinf(wanted.reach):
        assert torch.equal(within, wanted.asked(rows))


@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_no_flip_matters_at_radius_zero(p):
    assert still_wanted(RobustnessCurve([0.0, 0.1, 0.2]), WassersteinBall(p, INF, 0.0)).reach == 0


def test_names_and_numbers():
    assert chosen_effort("auto").name == "auto"
    assert isinstance(chosen_effort("quick").effort, FirstSearch)
    by_hand = chosen_effort("auto", steps=50, targets=3)
    assert by_hand.name == "by hand"
    assert isinstance(by_hand.effort, FirstSearch)
    assert by_hand.search == {"steps": 50, "restarts": 1, "targets": 3}
    assert by_hand.described(BALLS[0]) == {"name": "MinimalDistance", "effort": "by hand", **by_hand.search}
    budgets = [chosen_effort(name).described(ball)["budget"] for name in ("auto", "publish") for ball in BALLS[:2]]
    assert 0 < budgets[0] < budgets[1] == budgets[3] / 10
    assert budgets[2] == 10 * budgets[0]
    with pytest.raises(UserError, match=r"distances\.effort='hard' is unknown"):
        chosen_effort("hard")

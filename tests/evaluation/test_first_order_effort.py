"""First-order rows within the passes that the distances took: the formula against a count at the network."""

import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from oracles import reference_images, reference_network

from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.first_order import first_order_rows
from wdro_train.evaluation.first_order_effort import ENOUGH_STEPS, FEWEST_STEPS, AllSteps, WithinPasses
from wdro_train.evaluation.measurements import chosen_measurements
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

N = 12


def pairs(folder, losses, orders, deltas, steps):
    model, (x, y) = reference_network("adversarial"), reference_images()
    ours = Engine(model, list(zip(x[:N].split(8), y[:N].split(8), strict=True)), PieceStore(folder, {}))
    with PassCounter(model) as counter:
        first_order_rows(ours, norm=math.inf, losses=losses, orders=orders, deltas=deltas, steps=steps, box=True)
    assert ours.ledger.total.pairs == counter.pairs
    return counter.pairs


@pytest.mark.parametrize(
    ("losses", "orders", "deltas"),
    [(("redlr",), (2.0,), (0.1,)), (("ce", "redlr"), (2.0,), (0.05, 0.1)), (("ce",), (1.5, 2.0), (0.1,))],
)
@pytest.mark.slow
@pytest.mark.covers
def test_rows_take_the_passes_that_there_are_and_no_more(tmp_path, losses, orders, deltas):
    balls = len(orders) * len(deltas)
    spent = N * (len(losses) * (2 + balls * (ENOUGH_STEPS + 3)) + 0.5)
    plan = WithinPasses(steps=50, share=1.0)(losses, balls, N, spent)
    assert plan.losses == losses
    assert plan.steps == ENOUGH_STEPS + 2
    assert pairs(tmp_path / "planned", losses, orders, deltas, plan.steps) <= spent
    assert pairs(tmp_path / "more", losses, orders, deltas, plan.steps + 1) > spent - N * 0.5 - 1e-9


@given(st.floats(0.1, 500), st.integers(1, 3), st.integers(1, 6), st.floats(0.1, 3))
def test_plan_spends_at_most_the_share(spent, count, balls, share):
    losses = ("ce", "dlr", "redlr")[-count:]
    plan = WithinPasses(steps=50, share=share)(losses, balls, 1, spent)
    assert plan.losses == losses[len(losses) - len(plan.losses) :]
    if plan.losses:
        assert (FEWEST_STEPS if len(plan.losses) == 1 else ENOUGH_STEPS) <= plan.steps <= 50
        assert len(plan.losses) * (2 + balls * (plan.steps + 1)) <= share * spent + 1e-9
    if len(plan.losses) < count:  # one loss more would have got too few steps
        fewest = ENOUGH_STEPS if plan.losses else FEWEST_STEPS
        assert (len(plan.losses) + 1) * (2 + balls * (fewest + 1)) > share * spent - 1e-9


def test_at_full_effort_everything_runs():
    assert AllSteps(50)(("ce", "redlr"), 3, 100, 0.0) == (("ce", "redlr"), 50)


def test_few_steps_that_were_asked_for_are_enough():
    assert WithinPasses(steps=3, share=1.0)(("redlr",), 1, 1, 6.0) == (("redlr",), 3)
    assert WithinPasses(steps=3, share=1.0)(("redlr",), 1, 1, 5.9) == ((), 0)


@pytest.mark.parametrize("empty", ["losses", "p", "deltas", "shares"])
def test_a_grid_without_entries_is_refused(empty):
    grid = {"losses": ["redlr"], "p": None, "deltas": None, "shares": [1], "steps": 20, "passes": 1, "box": True}
    cfg = {"certificate": None, "peers": {"autoattack": False, "square": False}, "poster": {}, "first_order": grid}
    chosen = partial(chosen_measurements, ball=WassersteinBall(2, math.inf, 0.1), images=10, tell=print)
    assert chosen(OmegaConf.create(cfg))[-1].name == "first-order rows"
    with pytest.raises(UserError, match=rf"first_order\.{'deltas' if empty == 'shares' else empty} is empty"):
        chosen(OmegaConf.create(cfg | {"first_order": grid | {empty: []}}))

"""What comes back from a checkpoint is numbers, or it is refused in a sentence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wdro_train.attacks import DualAscent, Lagrangian
from wdro_train.objectives import Ibp, LipschitzDual
from wdro_train.theory.sensitivity import RunningScope
from wdro_train.utils.errors import UserError
from wdro_train.utils.learnt import learnt_number

BALL = {"p": 2, "norm": math.inf, "delta": 0.1}
PARTS = {
    "marginal": (DualAscent, "distance"),
    "ibp": (lambda: Ibp(**BALL), "distance"),
    "lipschitz_dual": (lambda: LipschitzDual(**BALL | {"norm": 2}), "distance"),
    "lagrangian": (lambda: Lagrangian(**BALL), "log_price"),
    "scope": (RunningScope, "upsilon"),
}
OTHER = [
    *("text", [1, 2], 3.0, {1: torch.tensor(1.0)}, {"KEY": "x"}, {"KEY": 7}, {"KEY": torch.tensor(math.nan)}),
    *({"KEY": torch.tensor(math.inf)}, {"KEY": torch.tensor(1)}, {"KEY": [torch.tensor(1.0)]}),
]


@pytest.mark.parametrize("state", OTHER, ids=str)
@pytest.mark.parametrize("part", PARTS)
def test_a_state_of_another_kind_is_refused(part, state):
    make, key = PARTS[part]
    named = {key if k == "KEY" else k: v for k, v in state.items()} if isinstance(state, dict) else state
    with pytest.raises(UserError, match=r"the checkpoint's .*; resume"):
        make().load_state_dict(named)


@pytest.mark.parametrize("part", ["marginal", "ibp", "lipschitz_dual"])
@pytest.mark.parametrize("value", [torch.tensor(-1.0), torch.tensor(0.0), torch.ones(3), torch.ones(1)])
def test_a_distance_is_one_positive_number(part, value):
    with pytest.raises(UserError, match="the checkpoint's marginal distance"):
        PARTS[part][0]().load_state_dict({"distance": value})


@given(st.floats(1e-6, 1e6))
def test_numbers_come_back(value):
    dual = DualAscent()
    dual.load_state_dict({"distance": torch.tensor(value, dtype=torch.float64)})
    assert dual.state_dict()["distance"].item() == value
    assert learnt_number({}, "distance", "marginal distance") is None


def test_moments_have_their_shape():
    with pytest.raises(UserError, match="running moments"):
        RunningScope().load_state_dict({"upsilon": torch.ones(4)})

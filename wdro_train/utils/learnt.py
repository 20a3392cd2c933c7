"""What a checkpoint keeps of an object that learns in training: numbers, which are checked when they come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from wdro_train.utils.errors import UserError


@runtime_checkable
class Stateful(Protocol):
    """An attack, a scope or an objective that learns something while it trains, which a checkpoint keeps.

    What it learns is the same on all ranks: it follows from statistics that a `Reducer` has gathered.
    """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: numbers, strings and tensors, in dictionaries and lists."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what a checkpoint has kept; an empty one starts afresh."""
        ...


def learnt_numbers(state: Any, name: str, *, positive: bool = False) -> dict[str, Tensor]:
    """The tensors of a state, if they are what such a state holds.

    Args:
        state: From a checkpoint, and so anything: should map keys to tensors of finite real numbers.
        name: What the state belongs to, for the error.
        positive: Whether the numbers must be positive.

    Raises:
        UserError: It is something else.
    """
    sound = isinstance(state, Mapping) and all(
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and not value.is_meta
        and bool(value.isfinite().all())
        and (not positive or bool((value > 0).all()))
        for key, value in state.items()
    )
    if not sound:
        raise UserError(
            f"the checkpoint's {name} is {_short(state)}, which no training leaves there; resume a file that train.py "
            "wrote, or begin anew from its weights with finetune.ckpt_path=..."
        )
    return {key: value.detach() for key, value in state.items()}


def learnt_number(state: Any, key: str, name: str, *, positive: bool = False) -> Tensor | None:
    """The one number of a state; None if it is empty, as before the first batch.

    Args:
        state: See `learnt_numbers`.
        key: Under which it is kept.
        name: What the state belongs to, for the error.
        positive: Whether it must be positive.

    Raises:
        UserError: It is something else than one number.
    """
    numbers = learnt_numbers(state, name, positive=positive)
    if not numbers:
        return None
    if set(numbers) != {key} or numbers[key].dim():
        raise UserError(
            f"the checkpoint's {name} is {_short(state)}, not one number {key}; resume a file of this method"
        )
    return numbers[key]


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."

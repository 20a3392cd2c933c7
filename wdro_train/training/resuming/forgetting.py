"""What a checkpoint loses before a changed configuration goes on with it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning, Timer, WeightAveraging

from wdro_train.training.resuming.kinds import Kind


def forget(checkpoint: dict[str, Any], callbacks: Iterable[L.Callback], changed: Collection[Kind]) -> None:
    """Take out of a checkpoint what its callbacks remember of another measurement or attack.

    A callback's state is a score, or was chosen by one, unless it is known to belong to training alone. One that
    depends on something else says so in an attribute `forgets_on`, a set of kinds.

    Args:
        checkpoint: As Lightning wrote it; is changed.
        callbacks: Those of the run that goes on.
        changed: The kinds of keys that are configured otherwise than in the checkpoint.
    """
    states = checkpoint.get("callbacks")
    kinds = set(changed)
    if not states or not kinds & {Kind.MEASURE, Kind.ATTACK}:
        return
    callbacks = list(callbacks)
    forgotten = {callback.state_key for callback in callbacks if kinds & _forgets_on(callback)}
    if Kind.MEASURE in kinds:  # states of callbacks that are gone were scores too
        forgotten |= states.keys() - {callback.state_key for callback in callbacks}
    checkpoint["callbacks"] = {key: state for key, state in states.items() if key not in forgotten}


def _forgets_on(callback: L.Callback) -> frozenset[Kind]:
    """The kinds of changes after which a callback's state is worth nothing."""
    if isinstance(callback, BaseFinetuning | Timer | WeightAveraging):
        return frozenset()
    declared: frozenset[Kind] = getattr(callback, "forgets_on", frozenset({Kind.MEASURE}))
    return declared

"""Going on with an optimizer under the settings that are asked for now.

Of an optimizer's state only what it has learnt, its momentum buffers, comes from the checkpoint. Its settings are those
of the present configuration, and its schedule stands where that of an uninterrupted run under this configuration would:
it is taken through its steps again, which gives bitwise the same rates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wdro_train.utils.errors import UserError


def carry_over(
    checkpoint: dict[str, Any],
    make: Callable[..., Optimizer],
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    position: int,
) -> None:
    """Rewrite a checkpoint so that restoring it keeps the buffers and applies the present settings.

    Args:
        checkpoint: As Lightning wrote it; is changed.
        make: Makes such an optimizer from parameters.
        optimizer: A new one, under the present settings.
        scheduler: Its schedule, not stepped yet; None for none.
        position: Steps that the schedule takes up to here.

    Raises:
        UserError: The buffers are of another optimizer, or of other weights.
    """
    saved = checkpoint["optimizer_states"][0]
    _check_weights(optimizer, saved)
    _check_buffers(make, optimizer, saved)
    if scheduler is not None:
        _replay(scheduler, position)
        checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    else:
        checkpoint["lr_schedulers"] = []
    checkpoint["optimizer_states"] = [{**saved, "param_groups": optimizer.state_dict()["param_groups"]}]


def _replay(scheduler: LRScheduler, steps: int) -> None:
    """Take a new schedule through its steps, which sets the optimizer's rates as they are then."""
    with warnings.catch_warnings():
        # The optimizer's own steps were taken before the checkpoint was written.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step\\(\\)` before")
        for _ in range(steps):
            scheduler.step()


def _check_weights(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Refuse buffers of another number of weights, which would be given to the wrong ones."""
    ours, theirs = (
        [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, saved["param_groups"])
    )
    if ours != theirs:
        raise UserError(
            f"the checkpoint's optimizer trains {theirs} weights a group, and this run {ours}; keep finetune.freeze, "
            "or start a new run from the network with finetune.ckpt_path=..."
        )


def _check_buffers(make: Callable[..., Optimizer], optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Refuse buffers that the optimizer, as it is set now, could not go on with: it would end in a KeyError."""
    if not saved["state"]:
        return
    ours, theirs = (
        [{key: value for key, value in group.items() if key not in ("params", "lr")} for group in groups]
        for groups in (optimizer.param_groups, saved["param_groups"])
    )
    if ours == theirs:
        return
    needed = _buffers(make, optimizer)
    for state in saved["state"].values():
        lacking = needed - state.keys()
        if state and lacking:
            changed = sorted(
                {
                    f"optimizer.{key}={new[key]}"
                    for new, old in zip(ours, theirs, strict=True)
                    for key in new
                    if new[key] != old.get(key) and not key.endswith("_lr")
                }
            )
            raise UserError(
                f"{', '.join(changed)}: {type(optimizer).__name__} needs {', '.join(sorted(lacking))}, which the "
                "checkpoint does not hold; keep the optimizer, or start a new run from the network with "
                "finetune.ckpt_path=..."
            )


def _buffers(make: Callable[..., Optimizer], optimizer: Optimizer) -> set[str]:
    """Names of the buffers that such an optimizer keeps for a weight, found out by one step on a small weight."""
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.zeros(2, 2)
    probe = make([weight])
    probe.step(lambda: 0.0)
    return set(probe.state[weight])

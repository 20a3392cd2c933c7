"""The optimizer and the schedule of a run, also of one that goes on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wdro_train.training.optimizer_state import carry_over
from wdro_train.training.resuming import TakenUp
from wdro_train.training.schedule import make_schedule


def make_optimization(
    parameters: Iterable[nn.Parameter],
    make_optimizer: Callable[..., Optimizer],
    make_scheduler: Callable[..., LRScheduler] | None,
    trainer: L.Trainer | None,
    taken_up: TakenUp | None,
) -> dict[str, Any]:
    """What `LightningModule.configure_optimizers` returns.

    Args:
        parameters: Of the network; those that are frozen are left out.
        make_optimizer: Takes parameters.
        make_scheduler: See `make_schedule`; None for a constant rate.
        trainer: Of the run; None outside one.
        taken_up: The checkpoint that is resumed, which is changed so that restoring it keeps the optimizer's buffers
            and applies the present settings; None for a new run.
    """
    optimizer = make_optimizer([p for p in parameters if p.requires_grad])
    made = None if make_scheduler is None else make_schedule(make_scheduler, optimizer, trainer)
    if taken_up is not None:
        assert trainer is not None  # only a trainer resumes
        position = 0 if made is None else made.position(taken_up.resumption, trainer)
        scheduler = None if made is None else made.scheduler
        carry_over(taken_up.checkpoint, make_optimizer, optimizer, scheduler, position)
    if made is None:
        return {"optimizer": optimizer}
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": made.scheduler, "interval": made.interval}}

"""The learning rate's schedule in a run: how it is made, when it steps, and where it stands when a run is resumed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wdro_train.training.resuming import Resumption
from wdro_train.utils.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """A scheduler that has not stepped yet.

    Attributes:
        scheduler: Of torch.
        interval: After what it steps.
    """

    scheduler: LRScheduler
    interval: Literal["epoch", "step"]

    def position(self, resumption: Resumption, trainer: L.Trainer) -> int:
        """The number of steps that the schedule would have taken at a checkpoint.

        That is, had the run had the present settings from its start.

        Args:
            resumption: The checkpoint.
            trainer: Of the present run.
        """
        if self.interval == "epoch":
            return resumption.epochs
        batches = trainer.num_training_batches
        if not resumption.whole_epochs or trainer.max_steps != -1 or math.isinf(batches):
            return resumption.steps
        return resumption.epochs * math.ceil(batches / trainer.accumulate_grad_batches)


def make_schedule(make: Callable[..., LRScheduler], optimizer: Optimizer, trainer: L.Trainer | None) -> Schedule:
    """A schedule that steps once an epoch, or after every step if it knows how many there will be.

    Args:
        make: Takes the optimizer. If it takes `total_steps` as well (OneCycleLR), it is given the number of steps of
            the run, unless it has one already, and steps after each.
        optimizer: Whose rate it sets.
        trainer: Knows the length of the run; None outside a run.

    Raises:
        UserError: The scheduler needs the length of a run that has none, ends before the run does, or cannot be made
            for a run of this length.
    """
    counted = inspect.signature(make).parameters.get("total_steps")
    if counted is None:
        return Schedule(make(optimizer), "epoch")
    given = None if counted.default is inspect.Parameter.empty else counted.default
    if trainer is None:
        if given is not None:
            return Schedule(make(optimizer), "step")  # outside a run there is no length to compare with
        raise UserError("scheduler needs the length of the run; give scheduler.total_steps outside a run")
    total = trainer.estimated_stepping_batches
    if math.isinf(total):
        raise UserError("scheduler needs the length of the run; set trainer.max_epochs or trainer.max_steps")
    if given is not None and given < total:
        raise UserError(
            f"scheduler.total_steps={given} ends before the {int(total)} steps of the run; leave it out, and it is "
            "the run's"
        )
    try:
        return Schedule(make(optimizer, total_steps=int(total) if given is None else given), "step")
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"a run of {int(total)} steps does not suit this scheduler ({error}); train longer or use "
            "scheduler=constant"
        ) from error

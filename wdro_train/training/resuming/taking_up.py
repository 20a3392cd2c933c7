"""What happens between reading a checkpoint and going on with it, when Lightning resumes a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from wdro_train.training.resuming.forgetting import forget
from wdro_train.training.resuming.resumption import Resumption


@runtime_checkable
class Continuable(Protocol):
    """A logger that can go on in the file of the run that is resumed."""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        ...

    def continue_at(self, epoch: int, *, same_measure: bool) -> None:
        """What is logged from now on begins with this epoch."""
        ...


@dataclass(frozen=True)
class TakenUp:
    """A checkpoint that is going to be resumed, until its optimizer is there to be restored.

    Attributes:
        resumption: What of the checkpoint still holds.
        checkpoint: Its content, from which Lightning restores the rest of the run after the optimizer has been made.
    """

    resumption: Resumption
    checkpoint: dict[str, Any]


def take_up(
    checkpoint: dict[str, Any],
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any] | None,
    trainer: L.Trainer,
) -> TakenUp:
    """Let go of what does not hold under the present configuration, say so, and tell the loggers where they stand.

    Args:
        checkpoint: As Lightning wrote it; is changed.
        before: The configuration in it, None if there is none.
        now: The configuration that is to go on, None if there is none.
        trainer: Of the run that goes on.

    Raises:
        UserError: The checkpoint cannot go on under this configuration.
    """
    resumption = Resumption.of(checkpoint, before, now, trainer.ckpt_path or "the checkpoint")
    resumption.refuse_impossible(trainer.max_epochs, trainer.max_steps)
    if sentence := resumption.sentence():
        rank_zero_warn(sentence)
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    forget(checkpoint, callbacks, resumption.changed)
    for logger in trainer.loggers:
        if isinstance(logger, Continuable) and resumption.continues_in(logger.save_dir):
            logger.continue_at(resumption.epochs, same_measure=resumption.measures_the_same)
    return TakenUp(resumption, checkpoint)

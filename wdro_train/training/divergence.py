"""Stopping a training before a loss that is no number reaches the weights."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from wdro_train.utils.errors import UserError


def refuse_nonfinite(loss: Tensor, trainer: L.Trainer, batch_idx: int) -> None:
    """Stop at a loss that is NaN or infinite; one scalar to the host.

    Args:
        loss: Of a training step, scalar.
        trainer: Of the run.
        batch_idx: Number of the step's batch in the epoch.

    Raises:
        UserError: Names epoch and batch.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise diverged(value, trainer, batch_idx)


def diverged(loss: float, trainer: L.Trainer, batch_idx: int) -> UserError:
    """The sentence for a training that has diverged, with the checkpoint to go on from.

    Args:
        loss: NaN or infinite.
        trainer: Of the run.
        batch_idx: Number of the batch in the epoch.
    """
    saved = [one.best_model_path for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    last = next(filter(None, reversed(saved)), None)
    kept = f"the last good checkpoint is kept: resume it, ckpt_path={last},"
    return UserError(
        f"the training loss became {loss} in epoch {trainer.current_epoch + 1}, batch {batch_idx}; "
        f"{'start again' if last is None else kept} with a smaller optimizer.lr or trainer.gradient_clip_val"
    )

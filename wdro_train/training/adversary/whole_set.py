"""Upsilon of a whole validation or test set, measured in a pass over the set before its batches are judged."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader

from wdro_train.attacks import WFGSM
from wdro_train.data.padding import only_loader
from wdro_train.theory.power_mean import merge
from wdro_train.training.batches import BatchInspector
from wdro_train.utils.contract import already_checked
from wdro_train.utils.distributed import default_reducer
from wdro_train.utils.errors import UserError


@dataclass(frozen=True)
class EvaluationSet:
    """The one set that a stage is about to judge.

    Attributes:
        loader: Yields its batches.
        limit: Only so many batches of it are judged; None for all.
    """

    loader: Iterable[Any]
    limit: int | None

    @classmethod
    def of(cls, loaders: Any, limits: list[int | float]) -> EvaluationSet:
        """From what Lightning holds for a stage.

        Args:
            loaders: A loader, or a container of loaders.
            limits: How many batches of each are judged.

        Raises:
            UserError: There are several.
        """
        if len(limits) != 1:
            raise UserError(f"{len(limits)} evaluation sets are not supported; pass a single dataloader")
        return cls(only_loader(loaders), None if limits[0] == float("inf") else int(limits[0]))

    def batches(self) -> Iterable[Any]:
        """The batches that are going to be judged, while the stage's own iterator over them waits."""
        return islice(iter(_second_reader(self.loader)), self.limit)


def gradient_moment_of_set(
    attack: WFGSM, model: L.LightningModule, inspector: BatchInspector, images: EvaluationSet, trainer: L.Trainer
) -> Tensor:
    """The moment of ||grad J||_* from which Upsilon = (E ||grad J||_*^q)^(1/q) of the whole set follows.

    One forward and one backward pass over the set, on batches that go the same way as those of the stage itself, and
    one collective at the end.

    Args:
        attack: Whose loss and ground norm the gradients are of.
        model: Maps images in [0, 1] to logits.
        inspector: Checks the batches.
        images: The set.
        trainer: Of the stage.

    Returns:
        Moment with exponent q, the same on all ranks, shape [3]; see `wdro_train.theory.power_mean`.
    """
    q = attack.ball.q
    total = torch.zeros(3, dtype=torch.float64, device=model.device)
    for index, raw in enumerate(images.batches()):
        raw = trainer.precision_plugin.convert_input(raw)
        raw = _batch_hooks(trainer, model).on_before_batch_transfer(raw, dataloader_idx=0)
        raw = trainer.strategy.batch_to_device(raw, dataloader_idx=0)
        with trainer.precision_plugin.val_step_context():
            batch = inspector.receive(model, raw, index, trainer)
            with already_checked(batch.checked):
                part = attack.gradient_moment(model, batch.x, batch.y, weight=batch.weight)
        total = merge(torch.stack([total, part]), q)
    return merge(default_reducer().gather(total), q)


def _batch_hooks(trainer: L.Trainer, model: L.LightningModule) -> L.LightningModule | L.LightningDataModule:
    """Whose `on_before_batch_transfer` Lightning calls: the data module's, unless it has none of its own."""
    data: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
    return model if data is None or not is_overridden("on_before_batch_transfer", data) else data


def _second_reader(loader: Any) -> Iterable[Any]:
    """The same batches again; a loader with persistent workers has only one iterator, which is in use."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader  # type: ignore[no-any-return]
    # A copy, because a DataLoader cannot be built anew from its own attributes for every kind of dataset and batching.
    # Without an iterator it starts workers of its own, which end when it is no longer used.
    twin = copy.copy(loader)
    twin._iterator = None
    return twin

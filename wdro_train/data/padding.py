"""Which images of a batch count once: a `DistributedSampler` repeats some to give every rank equally many."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor
from torch.utils.data import DistributedSampler


def only_loader(loaders: Any) -> Any:
    """The one loader of a stage, which Lightning holds alone, in a list or in a dictionary.

    Args:
        loaders: Such as `trainer.val_dataloaders`.
    """
    if isinstance(loaders, dict):
        return next(iter(loaders.values()))
    return loaders[0] if isinstance(loaders, list | tuple) else loaders


def batch_weight(trainer: L.Trainer, size: int, batch_idx: int, device: torch.device) -> Tensor:
    """The weight of each image of the current batch in sums over all ranks: 1, and 0 where it repeats another one.

    Rank r of R gets the images r, r + R, r + 2R, ... of the sampler's order, and what lies beyond the N images of the
    set repeats the first ones.

    Args:
        trainer: Knows the running stage and its loader.
        size: Number of images in this rank's batch.
        batch_idx: Index of the batch in its epoch.
        device: Where to put the weights.

    Returns:
        Shape [size], float64.
    """
    stage = trainer.state.stage
    if stage == RunningStage.TRAINING:
        loader = only_loader(trainer.train_dataloader)
    else:
        loader = only_loader(trainer.test_dataloaders if stage == RunningStage.TESTING else trainer.val_dataloaders)
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or loader.batch_size is None:
        return torch.ones(size, dtype=torch.float64, device=device)
    row = torch.arange(size, device=device) + batch_idx * loader.batch_size
    real: Tensor = row * sampler.num_replicas + sampler.rank < len(cast(Sized, sampler.dataset))
    return real.double()

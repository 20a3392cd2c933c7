"""What a step knows about its batch: images and labels that keep the contract, which of them count, and where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch import Tensor, nn

from wdro_train.attacks.network_check import check_network
from wdro_train.data.padding import batch_weight
from wdro_train.utils.contract import CheckedBatch, already_checked, check_batch, check_images, check_labels, unpack


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of the global batch of a step.

    Attributes:
        checked: Images [B, C, H, W] in [0, 1], labels [B] in int64 and their range, as `check_batch` returned them.
        weight: 1 for the images that count and 0 for those that only fill up the ranks, float64, shape [B].
        stage: Training, validation or test.
        epoch: The epoch of the run.
        index: The batch's number in the epoch, the same on all ranks.
    """

    checked: CheckedBatch
    weight: Tensor
    stage: RunningStage | None
    epoch: int
    index: int

    @property
    def x(self) -> Tensor:
        """Images in [0, 1], shape [B, C, H, W]."""
        return self.checked.x

    @property
    def y(self) -> Tensor:
        """Labels, int64, shape [B]."""
        return self.checked.y


class BatchInspector:
    """Looks at every batch once, and at the network with the first batch of each image size.

    Looking at a batch costs a transfer to the host, so whoever is handed the result does not look again.

    Attributes:
        classes: Number of the network's outputs, by the size of the images that it was looked at with.
    """

    def __init__(self) -> None:
        self.classes: dict[torch.Size, int] = {}

    def examine(self, model: nn.Module, x: Tensor, y: Tensor | None = None) -> int:
        """Look at what the network makes of a batch, unless it has been seen with such images.

        Args:
            model: Maps images in [0, 1] to logits.
            x: Images, shape [B, C, H, W], on the network's device.
            y: Labels, shape [B]; None where there are none.

        Returns:
            The number of classes that the network has an output for.

        Raises:
            UserError: The batch, or what the network makes of it, is not what `wdro_train.utils.contract` says.
        """
        if x.shape[1:] not in self.classes:
            self.classes[x.shape[1:]] = check_network(model, x, y)
        return self.classes[x.shape[1:]]

    def receive(self, model: nn.Module, batch: Any, index: int, trainer: L.Trainer) -> StepBatch:
        """A labelled batch of a loader, checked.

        Args:
            model: What is going to be shown the batch.
            batch: (images, labels, ...) or a dictionary; see `wdro_train.utils.contract.unpack`.
            index: The batch's number in the epoch.
            trainer: Knows the stage, the epoch, and which images fill up the ranks.

        Raises:
            UserError: The batch, or what the network makes of it, is not what `wdro_train.utils.contract` says.
        """
        checked = check_batch(*unpack(batch))
        with already_checked(checked):
            classes = self.examine(model, checked.x, checked.y)
        check_labels(checked.labels, classes)
        return StepBatch(
            checked,
            weight=batch_weight(trainer, len(checked.x), index, checked.x.device),
            stage=trainer.state.stage,
            epoch=trainer.current_epoch,
            index=index,
        )

    def receive_images(self, model: nn.Module, x: Tensor) -> Tensor:
        """Images without labels, checked.

        Args:
            model: What is going to be shown the images.
            x: Floating point, shape [B, C, H, W].

        Raises:
            UserError: The images, or what the network makes of them, are not what `wdro_train.utils.contract` says.
        """
        x = check_images(x)
        self.examine(model, x)
        return x


def is_last_batch(trainer: L.Trainer) -> bool:
    """Whether the batch that is being validated or tested is the last one of its set.

    Args:
        trainer: In the middle of a validation or test step.
    """
    if trainer.state.fn == TrainerFn.FITTING:
        loop = trainer.fit_loop.epoch_loop.val_loop
    else:
        loop = trainer.test_loop if trainer.state.fn == TrainerFn.TESTING else trainer.validate_loop
    return loop.batch_progress.is_last_batch

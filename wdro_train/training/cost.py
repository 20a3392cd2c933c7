"""What a run costs, measured on a step and a validation batch before it starts: time, memory, passes of the network."""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from wdro_train.data import ImageDataModule
from wdro_train.training.callbacks import AdversarialWeightPerturbation, DistributionalAdversary
from wdro_train.training.module import RobustClassifier
from wdro_train.training.time_left import shown
from wdro_train.utils.pass_counter import PassCounter

_MEGABYTE = 2**20


@dataclass(frozen=True)
class StageCost:
    """What one batch of a stage costs.

    Attributes:
        stage: `training` or `validation`.
        images: Images of an epoch: those of the whole set, or of as many batches as the run is limited to.
        batches: Batches of an epoch.
        seconds: Of one batch; in training of the second one, as the first also pays for what is set up once.
        forward: Forward passes an image.
        backward: Backward passes an image.
    """

    stage: str
    images: int
    batches: int
    seconds: float
    forward: float
    backward: float

    @property
    def epoch(self) -> float:
        """Seconds of an epoch of this stage."""
        return self.seconds * self.batches

    def __str__(self) -> str:
        """The passes of an epoch."""
        return (
            f"{self.stage:<11} {self.images:,} images an epoch, each {self.forward:.3g} times forward and "
            f"{self.backward:.3g} times backward: {self.images * self.forward:,.0f} and "
            f"{self.images * self.backward:,.0f} passes"
        )


@dataclass(frozen=True)
class RunCost:
    """What a run costs.

    Attributes:
        training: A training step.
        validation: A validation batch.
        epochs: Epochs of the run; None for one that goes on until it is stopped.
        test_batches: Batches of the test at the end; 0 without a test.
        memory: Bytes that the device, or on the CPU the process, needed at most.
        device: Where it was measured.
    """

    training: StageCost
    validation: StageCost
    epochs: int | None
    test_batches: int
    memory: int
    device: torch.device

    @property
    def seconds(self) -> float:
        """Of the whole run on one such device; of one epoch and the test, if nobody knows how many epochs there are."""
        each = self.training.epoch + self.validation.epoch
        return (self.epochs or 1) * each + self.test_batches * self.validation.seconds

    def __str__(self) -> str:
        """Time and memory, in one line."""
        return (
            f"about {shown(self.seconds)} on one {self.device.type} device: {self.epochs or 'any number of'} epochs of "
            f"{shown(self.training.epoch)} training and {shown(self.validation.epoch)} validation; "
            f"{self.memory / _MEGABYTE:,.0f} MB of memory"
        )


class _Watch(L.Callback):
    """Times the batches, and reads the counter of passes after the first of them."""

    def __init__(self, passes: PassCounter) -> None:
        self.passes = passes
        self.seconds: list[float] = []
        self.images = self.forward = self.backward = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int) -> None:
        self._began = time.monotonic()

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, index: int, loader: int = 0
    ) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._over(pl_module.device, len(batch[0]))

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        self._over(pl_module.device, len(batch[0]))

    def _over(self, device: torch.device, images: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if not self.seconds:
            self.images, self.forward, self.backward = images, self.passes.forward, self.passes.backward
        self.seconds.append(time.monotonic() - self._began)


def measure(
    module: RobustClassifier,
    data: ImageDataModule,
    callbacks: Sequence[L.Callback],
    settings: Mapping[str, Any],
    *,
    test: bool = True,
) -> RunCost:
    """Take two training steps and judge a validation batch, on copies of the module that are thrown away.

    An attack leaves out images that it has flipped, so a trained network, whose images resist longer, costs more than
    is said here.

    Args:
        module: To be trained; it is not.
        data: Its images.
        callbacks: Of the run; those that cost passes take part.
        settings: Of the run's Trainer: its accelerator and precision, the number of epochs and the limits of batches.
        test: Whether a test ends the run.
    """
    device = torch.device("cpu")
    stages = {}
    for stage in ("training", "validation"):
        network = copy.deepcopy(module)
        costly: list[L.Callback] = [
            c for c in callbacks if isinstance(c, DistributionalAdversary | AdversarialWeightPerturbation)
        ]
        with PassCounter(network.model) as passes:
            watch = _Watch(passes)
            trainer = _trainer(settings, [*copy.deepcopy(costly), watch], stage)
            if stage == "training":
                trainer.fit(network, datamodule=data)
            else:
                trainer.validate(network, datamodule=data, verbose=False)
        name = "train" if stage == "training" else "val"
        images, batches = _images(data, name, settings), _batches(data, name, settings)
        each = watch.forward / watch.images, watch.backward / watch.images
        stages[stage] = StageCost(stage, images, batches, watch.seconds[-1], *each)
        device = trainer.strategy.root_device
    memory = _peak_memory(device)
    test_batches = _batches(data, "test", settings) if test else 0
    epochs = _epochs(settings, stages["training"].batches)
    return RunCost(stages["training"], stages["validation"], epochs, test_batches, memory, device)


def details(cost: RunCost) -> list[str]:
    """The passes through the network, and what all figures rest on, in lines for people.

    Args:
        cost: From `measure`.
    """
    return [
        str(cost.training),
        str(cost.validation),
        "measured on the first batches of the untrained network; attacks cost more where images resist",
    ]


def _trainer(settings: Mapping[str, Any], callbacks: list[L.Callback], stage: str) -> L.Trainer:
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "devices": 1, "max_epochs": 1, "num_sanity_val_steps": 0}
    options |= {key: settings[key] for key in ("accelerator", "precision") if key in settings}
    limits: dict[str, Any] = {"limit_val_batches": 1}
    if stage == "training":
        limits = {"limit_train_batches": 2, "limit_val_batches": 0}
    return L.Trainer(callbacks=callbacks, **options, **limits)


def _images(data: ImageDataModule, name: str, settings: Mapping[str, Any]) -> int:
    images, batches = len(data.arrays(name).labels), _batches(data, name, settings)
    if batches == _batches(data, name, {}):
        return images
    return min(images, batches * (data.batch_size if name == "train" else data.eval_batch_size))


def _batches(data: ImageDataModule, name: str, settings: Mapping[str, Any]) -> int:
    images = len(data.arrays(name).labels)
    batches = max(images // data.batch_size, 1) if name == "train" else math.ceil(images / data.eval_batch_size)
    limit = settings.get(f"limit_{name}_batches")
    if limit is None:
        return batches
    return min(limit, batches) if isinstance(limit, int) else int(limit * batches)


def _epochs(settings: Mapping[str, Any], batches: int) -> int | None:
    """How many epochs a run has; None without a limit."""
    steps, epochs = settings.get("max_steps", -1), settings.get("max_epochs")
    every = settings.get("accumulate_grad_batches", 1)
    limits = [math.ceil(steps * every / max(batches, 1))] if steps > 0 else []
    limits += [epochs] if epochs is not None and epochs > 0 else []
    return min(limits, default=None)


def _peak_memory(device: torch.device) -> int:
    """Bytes at most: what was allocated on a GPU, else what the process held."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

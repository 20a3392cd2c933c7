"""What an epoch of a run costs in passes through the network, counted on one batch before the run starts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import lightning as L
from rich.console import Console

from wdro_train.data import ImageDataModule
from wdro_train.training.callbacks import AdversarialWeightPerturbation, DistributionalAdversary
from wdro_train.training.module import RobustClassifier
from wdro_train.utils.pass_counter import PassCounter


def estimate(module: RobustClassifier, data: ImageDataModule, callbacks: Sequence[L.Callback]) -> list[str]:
    """The number of parameters, and the passes through the network that an epoch takes.

    They are counted in one step on a copy of the module that is thrown away. An attack leaves out images that it has
    flipped, so the validation of a trained network, whose images resist longer, costs more than is said here.

    Args:
        module: To be trained; it is not.
        data: Its images.
        callbacks: Of the run; those that cost passes are counted.

    Returns:
        Lines for people to read.
    """
    lines = [f"parameters  {sum(p.numel() for p in module.parameters()):,}"]
    for part, limits in (("training", (1, 0)), ("validation", (0, 1))):
        network = copy.deepcopy(module)
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        options |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "max_epochs": 1}
        costly: list[L.Callback] = [
            c for c in callbacks if isinstance(c, DistributionalAdversary | AdversarialWeightPerturbation)
        ]
        trainer = L.Trainer(
            limit_train_batches=limits[0], limit_val_batches=limits[1], num_sanity_val_steps=0,
            callbacks=copy.deepcopy(costly), **options,
        )  # fmt: skip
        with PassCounter(network.model) as passes:
            if part == "training":
                trainer.fit(network, datamodule=data)
            else:
                trainer.validate(network, datamodule=data, verbose=False)
        if part == "training":
            images, batch = len(data.arrays("train").labels), data.batch_size
        else:
            images = len(data.arrays("val").labels)
            batch = min(images, data.eval_batch_size)
        batch = min(batch, images)
        there, back = passes.forward / batch, passes.backward / batch
        lines.append(
            f"{part:<11} {images:,} images an epoch, each {there:.3g} times forward and {back:.3g} times backward: "
            f"{images * there:,.0f} and {images * back:,.0f} passes"
        )
    return lines


def show(lines: list[str]) -> None:
    """Print the estimate."""
    for line in [*lines, "counted on the first batch of the untrained network; attacks cost more where images resist"]:
        Console().print(line, soft_wrap=True)

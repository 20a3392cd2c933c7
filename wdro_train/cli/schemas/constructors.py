"""Says which schema goes with which object: by its constructor, or by its group for an object of the user's own.

A schema lists the settings that have a range or a choice; names that a constructor does not take are found by its
signature. An object of the user's own gets the settings that its group has in common.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers

from wdro_train import attacks, data, models, objectives
from wdro_train.cli.schemas import attacks as attack_settings
from wdro_train.cli.schemas import callbacks as callback_settings
from wdro_train.cli.schemas import fitting as fit_settings
from wdro_train.cli.schemas import images_and_networks as image_settings
from wdro_train.cli.schemas.part import Part
from wdro_train.training import callbacks, csv_logger

COMMON: dict[str, type[Part]] = {
    "data": image_settings.Images,
    "model": image_settings.Network,
    "attack": attack_settings.Attack,
    "objective": attack_settings.Objective,
    "optimizer": fit_settings.Optimizer,
    "scheduler": fit_settings.Scheduler,
    "trainer": fit_settings.Device,
}
"""For objects of the user's own, by their group."""

_PARTS: dict[type[Part], list[Any]] = {
    attack_settings.WPGD: [attacks.WPGD],
    attack_settings.Attack: [attacks.WFGSM, attacks.KLPGD],
    attack_settings.Lagrangian: [attacks.Lagrangian],
    attack_settings.BoundaryAttack: [attacks.BoundaryAttack],
    attack_settings.DualAscent: [attacks.DualAscent],
    attack_settings.Fixed: [attacks.Fixed],
    attack_settings.MinimalDistance: [attacks.MinimalDistance],
    attack_settings.Pool: [attacks.Pool],
    image_settings.Images: [data.Digits],
    image_settings.TorchvisionImages: [data.TorchvisionDataModule, data.GzipDataModule],
    image_settings.FolderImages: [data.ImageFolderDataModule],
    image_settings.HubImages: [data.HuggingFaceDataModule],
    image_settings.Network: [models.small_cnn, models.preact_resnet18, models.wide_resnet],
    image_settings.ResNet: [models.resnet18],
    image_settings.NamedNetwork: [
        models.torchvision_model,
        models.timm_model,
        models.huggingface_model,
        models.robustbench_model,
    ],
    attack_settings.Objective: [
        objectives.Adversarial,
        objectives.FirstOrderPenalty,
        objectives.Mart,
        objectives.Standard,
        objectives.WTrades,
    ],
    fit_settings.Optimizer: [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD],
    fit_settings.Scheduler: [
        torch.optim.lr_scheduler.ConstantLR,
        torch.optim.lr_scheduler.CosineAnnealingLR,
        torch.optim.lr_scheduler.MultiStepLR,
    ],
    fit_settings.OneCycle: [torch.optim.lr_scheduler.OneCycleLR],
    fit_settings.Device: [Trainer],
    callback_settings.Adversary: [callbacks.DistributionalAdversary],
    callback_settings.Checkpoint: [callbacks.RunCheckpoint, lightning_callbacks.ModelCheckpoint],
    callback_settings.Overfitting: [callbacks.OverfittingWarning],
    callback_settings.Pictures: [callbacks.AdversarialImages],
    callback_settings.SeedEpoch: [callbacks.SeedEpoch],
    callback_settings.Progress: [callbacks.ProgressBar],
    callback_settings.Theme: [lightning_callbacks.progress.rich_progress.RichProgressBarTheme],
    callback_settings.WeightPerturbation: [callbacks.AdversarialWeightPerturbation],
    callback_settings.Warmup: [callbacks.RadiusWarmup],
    callback_settings.Averaging: [lightning_callbacks.EMAWeightAveraging],
    callback_settings.Logger: [loggers.CSVLogger, csv_logger.RunCSVLogger, loggers.TensorBoardLogger],
    callback_settings.WandB: [loggers.WandbLogger],
    callback_settings.MLFlow: [loggers.MLFlowLogger],
}
_PART_OF: dict[Callable[..., Any], type[Part]] = {made: part for part, all_made in _PARTS.items() for made in all_made}


def part_of(made: Any) -> type[Part] | None:
    """The schema of what a constructor of this package, or one that its configuration files name, makes; else None.

    Args:
        made: A class or function, found by its name.
    """
    wandb = sys.modules.get("wandb")  # which is imported when a configuration names it, and not before
    if wandb is not None and made is wandb.Settings:
        return callback_settings.WandBSettings
    return _PART_OF.get(made)

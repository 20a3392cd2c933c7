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
    "data": image_settings.ImagesSettings,
    "model": image_settings.AnyNetworkSettings,
    "attack": attack_settings.AttackSettings,
    "objective": attack_settings.ObjectiveSettings,
    "optimizer": fit_settings.OptimizerSettings,
    "scheduler": fit_settings.SchedulerSettings,
    "trainer": fit_settings.TrainerSettings,
}
"""For objects of the user's own, by their group."""

_PARTS: dict[type[Part], list[Any]] = {
    attack_settings.WPGDSettings: [attacks.WPGD],
    attack_settings.AttackSettings: [attacks.WFGSM, attacks.KLPGD],
    attack_settings.LagrangianSettings: [attacks.Lagrangian],
    attack_settings.WRMSettings: [attacks.WRM],
    attack_settings.BoundaryAttackSettings: [attacks.BoundaryAttack],
    attack_settings.DualAscentSettings: [attacks.DualAscent],
    attack_settings.FixedSettings: [attacks.Fixed],
    attack_settings.MinimalDistanceSettings: [attacks.MinimalDistance],
    attack_settings.PoolSettings: [attacks.Pool],
    image_settings.ImagesSettings: [data.Digits],
    image_settings.TorchvisionImagesSettings: [data.TorchvisionDataModule, data.GzipDataModule],
    image_settings.FolderImagesSettings: [data.ImageFolderDataModule],
    image_settings.NumpyImagesSettings: [data.NumpyDataModule],
    image_settings.HubImagesSettings: [data.HuggingFaceDataModule],
    image_settings.NetworkSettings: [
        models.preact_resnet18,
        models.wide_resnet,
        models.lipschitz_mlp,
    ],
    image_settings.SmallCnnSettings: [models.small_cnn],
    image_settings.LipschitzCnnSettings: [models.lipschitz_cnn],
    image_settings.ResNetSettings: [models.resnet18],
    image_settings.OnnxSettings: [models.onnx_model],
    image_settings.NamedNetworkSettings: [
        models.torchvision_model,
        models.timm_model,
        models.huggingface_model,
        models.robustbench_model,
    ],
    attack_settings.ObjectiveSettings: [
        objectives.Adversarial,
        objectives.FirstOrderPenalty,
        objectives.Mart,
        objectives.Standard,
        objectives.WTrades,
    ],
    attack_settings.GaussianNoiseSettings: [objectives.GaussianNoise],
    attack_settings.StatisticallyRobustSettings: [objectives.StatisticallyRobust],
    attack_settings.CertifiedObjectiveSettings: [objectives.Ibp, objectives.CrownIbp],
    attack_settings.SabrSettings: [objectives.Sabr],
    attack_settings.LipschitzDualSettings: [objectives.LipschitzDual],
    attack_settings.OneRadiusSettings: [objectives.OneRadius],
    attack_settings.RadiusOfImageSettings: [objectives.RadiusOfImage],
    fit_settings.OptimizerSettings: [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD],
    fit_settings.SchedulerSettings: [
        torch.optim.lr_scheduler.ConstantLR,
        torch.optim.lr_scheduler.CosineAnnealingLR,
        torch.optim.lr_scheduler.MultiStepLR,
    ],
    fit_settings.OneCycleSettings: [torch.optim.lr_scheduler.OneCycleLR],
    fit_settings.TrainerSettings: [Trainer],
    callback_settings.AdversarySettings: [callbacks.DistributionalAdversary],
    callback_settings.CheckpointSettings: [callbacks.RunCheckpoint, lightning_callbacks.ModelCheckpoint],
    callback_settings.OverfittingSettings: [callbacks.OverfittingWarning],
    callback_settings.PicturesSettings: [callbacks.AdversarialImages],
    callback_settings.ExecutionSettings: [callbacks.NetworkExecution],
    callback_settings.SeedEpochSettings: [callbacks.SeedEpoch],
    callback_settings.ProgressSettings: [callbacks.ProgressBar],
    callback_settings.PruningSettings: [callbacks.TrialPruning],
    callback_settings.WeightPerturbationSettings: [callbacks.AdversarialWeightPerturbation],
    callback_settings.WarmupSettings: [callbacks.RadiusWarmup],
    callback_settings.GradualWarmupSettings: [callbacks.GradualWarmup],
    callback_settings.AveragingSettings: [lightning_callbacks.EMAWeightAveraging],
    callback_settings.LoggerSettings: [loggers.CSVLogger, csv_logger.RunCSVLogger, loggers.TensorBoardLogger],
    callback_settings.WandBLoggerSettings: [loggers.WandbLogger],
    callback_settings.MLFlowLoggerSettings: [loggers.MLFlowLogger],
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

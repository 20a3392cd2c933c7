"""Which values the settings of callbacks and loggers may have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wdro_train.certificates.named import PlainName, one_of
from wdro_train.cli.schemas import fields
from wdro_train.cli.schemas.fields import Said
from wdro_train.cli.schemas.part import Part


class AdversarySettings(Part):
    """Settings of `DistributionalAdversary`."""

    attack: fields.Node
    val_attack: fields.Node | None = None
    first_order: fields.Node | None = None
    distances: fields.Node | None = None
    test_distances: Annotated[
        Literal["default"] | fields.Node | None, Said("is no attack", "choose default, null or one with its _target_")
    ] = "default"
    certificate: Annotated[
        PlainName | fields.Node | None,
        Said("is no certificate", f"choose {one_of(PlainName)} or null"),
    ] = None
    whole_set: fields.Flag = True
    seed: fields.Seed = 0


class CheckpointSettings(Part):
    """Settings of `RunCheckpoint`, and of Lightning's own."""

    dirpath: fields.Path | None = None
    filename: fields.Text | None = None
    monitor: fields.Text | None = None
    mode: Annotated[Literal["min", "max"], Said("is no direction", "choose min or max")] = "min"
    save_top_k: Annotated[
        int, Field(strict=True, ge=-1), Said("is not a whole number", "choose 1 or more, or -1 for all")
    ] = 1
    save_last: Annotated[
        Annotated[bool, Field(strict=True)] | Literal["link"] | None, Said("is neither true nor false", "choose true")
    ] = None
    every_n_epochs: fields.Count | None = None
    every_n_train_steps: fields.Count | None = None
    save_on_train_epoch_end: fields.Flag | None = None
    enable_version_counter: fields.Flag = True
    save_weights_only: fields.Flag = False
    auto_insert_metric_name: fields.Flag = True


class OverfittingSettings(Part):
    """Settings of `OverfittingWarning`."""

    tolerance: fields.NotNegative = 0.02
    one_step: fields.Text = "val/fgsm_acc"
    multi_step: fields.Text = "val/adv_acc"


class PicturesSettings(Part):
    """Settings of `AdversarialImages`."""

    folder: fields.Path
    number: fields.Count = 8
    every_n_epochs: fields.Count = 1


class ExecutionSettings(Part):
    """Settings of `NetworkExecution`."""

    channels_last: fields.Flag
    compile: fields.Flag


class SeedEpochSettings(Part):
    """Settings of `SeedEpoch`."""

    seed: fields.Seed


class ProgressSettings(Part):
    """Settings of `ProgressBar`."""

    test: fields.Flag = True


class PruningSettings(Part):
    """Settings of `TrialPruning`."""

    folder: fields.Path
    run_dir: fields.Path
    monitor: fields.Text = "val/worst_acc"
    mode: Annotated[Literal["min", "max"], Said("is no direction", "choose min or max")] = "max"
    pruner: fields.Node | None = None


class WeightPerturbationSettings(Part):
    """Settings of `AdversarialWeightPerturbation`."""

    gamma: fields.NotNegative = 0.005
    start_epoch: fields.Natural = 0


class WarmupSettings(Part):
    """Settings of `RadiusWarmup`."""

    epochs: fields.Count = 5


class GradualWarmupSettings(Part):
    """Settings of `GradualWarmup`."""

    part: fields.UpToOne = 0.5


class AveragingSettings(Part):
    """Settings of Lightning's averaging of weights."""

    decay: fields.Unit = 0.999


class LoggerSettings(Part):
    """What loggers have in common."""

    save_dir: fields.Path | None = None
    name: Annotated[str | None, Said("is not a text", "give a name")] = None
    version: Annotated[str | int | None, Said("is no version", "give a name or a number")] = None


class WandBLoggerSettings(LoggerSettings):
    """Settings of W&B's logger."""

    project: fields.Text | None = None
    offline: fields.Flag = False
    log_model: Annotated[
        Annotated[bool, Field(strict=True)] | Literal["all"], Said("is neither true nor false", "choose true or false")
    ] = False
    settings: fields.Node | None = None


class WandBSettings(Part):
    """Settings of W&B itself."""

    quiet: fields.Flag = True


class MLFlowLoggerSettings(Part):
    """Settings of MLflow's logger."""

    experiment_name: fields.Text = "wdro_train"
    run_name: fields.Text | None = None
    tracking_uri: fields.Text | None = None

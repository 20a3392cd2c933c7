"""The settings of every object that the configuration files here name, by its constructor.

A model lists the settings that have a range or a choice; names that a constructor does not take are found by its
signature. An object of the user's own gets the settings that its group has in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import wandb
from lightning import Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from wdro_train import attacks, data, models, objectives
from wdro_train.cli.schemas import fields
from wdro_train.cli.schemas.fields import Said
from wdro_train.training import callbacks, csv_logger


class Part(BaseModel):
    """Settings of one object; what is not listed is left to its constructor."""

    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True, protected_namespaces=())


class Attack(Part):
    """What attacks have in common."""

    p: fields.Number = 2
    norm: fields.Number = 2
    delta: fields.FiniteNumber = 0
    loss: fields.Loss = "ce"
    steps: fields.Count = 1
    step_size: fields.Positive = 1.0
    box: fields.Flag = True
    scope: Annotated[Literal["batch", "running"] | fields.Node, Said("is unknown", "choose batch or running")] = "batch"
    batch_norm: Annotated[Literal["eval", "train"], Said("is unknown", "choose eval or train")] = "eval"
    batch_size: fields.Count | None = None


class WPGD(Attack):
    """Of `WPGD`."""

    random_start: fields.Flag = False
    keep: Annotated[Literal["last", "best", "cheapest"], Said("is unknown", "choose last, best or cheapest")] = "last"


class Lagrangian(Attack):
    """Of `Lagrangian`."""

    free: fields.BelowOne = 0.0
    random_start: fields.Flag = True
    rate: fields.NotNegative = 0.05
    limit: fields.UpToOne = 0.6


class BoundaryAttack(Attack):
    """Of `BoundaryAttack`."""

    random_start: fields.NotNegative = 0.2
    bisections: fields.Natural = 0
    weighted: fields.Flag = False
    beyond: fields.NotNegative = 0.5
    marginal: fields.Node | None = None


class DualAscent(Part):
    """Of `DualAscent`."""

    rate: fields.NotNegative = 0.05
    limit: fields.UpToOne = 0.6
    safety: fields.AtLeastOne = 1.0


class Fixed(Part):
    """Of `Fixed`."""

    distance: fields.FiniteNumber


class MinimalDistance(Part):
    """Of `MinimalDistance`."""

    norm: fields.Number
    steps: fields.Count = 30
    restarts: fields.Count = 1
    targets: fields.Natural = 0
    step_size: fields.Positive | None = None
    batch_size: fields.Count | None = None


class Pool(Part):
    """Of `Pool`."""

    attacks: Annotated[
        list[fields.Node],
        Field(strict=True, min_length=1),
        Said("is not a list of attacks", "give each with its _target_", "is empty"),
    ]


class Objective(Part):
    """What objectives have in common."""

    beta: fields.NotNegative = 1.0
    p: fields.Number = 2
    norm: fields.Number = 2
    delta: fields.FiniteNumber = 0
    loss: fields.Loss = "ce"


class Images(Part):
    """What sets of images have in common."""

    shape: fields.Shape
    num_classes: fields.Classes
    mean: fields.Means
    std: fields.Deviations
    delta: Annotated[
        dict[str, fields.FiniteNumber], Field(strict=True), Said("is not a radius for each norm", "as {linf: 8/255}")
    ]
    batch_size: fields.Count = 128
    eval_batch_size: fields.Count = 512
    val_fraction: fields.Share = 0.1
    split_seed: fields.Seed = 0
    seed: fields.Seed = 0
    num_workers: fields.Natural = 0
    augment: fields.Nodes | None = None


class TorchvisionImages(Images):
    """Of `TorchvisionDataModule` and `GzipDataModule`."""

    name: fields.TorchvisionSet
    root: fields.Path = "data"
    download: fields.Flag = False
    gz_folder: fields.Path | None = None
    package: fields.Text | None = None


class FolderImages(Images):
    """Of `ImageFolderDataModule`."""

    root: fields.Path
    folders: fields.Folders
    resize: fields.Count | None = None
    subset: fields.Path | None = None


class HubImages(Images):
    """Of `HuggingFaceDataModule`."""

    name: fields.Text
    image: fields.Text = "image"
    label: fields.Text = "label"
    splits: fields.Folders | None = None
    resize: fields.Count | None = None


class Network(Part):
    """What networks have in common."""

    shape: fields.Shape | None = None
    num_classes: fields.Classes = 10
    mean: fields.Means | None = None
    std: fields.Deviations | None = None
    width: fields.Count = 1
    depth: fields.Count = 10
    dropout: fields.BelowOne = 0.0
    final_bn: fields.Flag = True
    active_shortcut: fields.Flag = False
    pretrained: fields.Flag = False
    weights: fields.Path | None = None


class ResNet(Network):
    """Of `resnet18`."""

    small_stem: fields.Flag | None = None


class NamedNetwork(Network):
    """Of a library's network, chosen by name."""

    name: fields.Text
    small_stem: fields.Flag = False
    options: fields.Settings | None = None
    root: fields.Path = "models"
    threat: Annotated[
        Literal["Linf", "L2"], Said("is no threat of RobustBench's networks here", "choose Linf or L2")
    ] = "Linf"


class Optimizer(Part):
    """What optimizers have in common."""

    lr: fields.NotNegative = 1e-3
    weight_decay: fields.NotNegative = 0.0
    momentum: fields.NotNegative = 0.0
    nesterov: fields.Flag = False
    dampening: fields.Finite = 0.0
    eps: fields.NotNegative = 1e-8
    amsgrad: fields.Flag = False


class Scheduler(Part):
    """What schedulers have in common."""

    T_max: fields.Count = 1
    eta_min: fields.NotNegative = 0.0
    factor: fields.UpToOne = 1.0
    total_iters: fields.Natural = 0
    milestones: fields.Milestones = Field(default_factory=list)
    gamma: fields.Positive = 0.1
    step_size: fields.Count = 1
    total_steps: fields.Count | None = None
    pct_start: fields.Unit = 0.3
    cycle_momentum: fields.Flag = True


class OneCycle(Scheduler):
    """Of `OneCycleLR`."""

    max_lr: fields.Positive


class Device(Part):
    """The Trainer's settings that decide where and how long it runs; all others are left to Lightning."""

    accelerator: fields.Text = "auto"
    devices: fields.Devices = "auto"
    num_nodes: fields.Count = 1
    strategy: Annotated[
        Annotated[str, Field(strict=True, min_length=1)] | dict[str, Any], Said("is no strategy", "choose auto or ddp")
    ] = "auto"
    max_epochs: fields.CountOrAll | None = None
    min_epochs: fields.Natural | None = None
    max_steps: fields.CountOrAll = -1
    min_steps: fields.Natural | None = None
    limit_train_batches: fields.BatchLimit | None = None
    limit_val_batches: fields.BatchLimit | None = None
    limit_test_batches: fields.BatchLimitOrNone | None = None
    check_val_every_n_epoch: fields.Count | None = 1
    num_sanity_val_steps: (
        Annotated[int, Field(strict=True, ge=-1), Said("is not a whole number", "choose 0 or more, or -1 for all")]
        | None
    ) = None
    precision: Annotated[StrictStr | StrictInt, Said("is no precision", "choose 32-true or bf16-mixed")] = 32
    accumulate_grad_batches: fields.Count = 1
    gradient_clip_val: fields.NotNegative | None = None
    deterministic: Annotated[
        Annotated[bool, Field(strict=True)] | Literal["warn"] | None,
        Said("is neither true nor false", "choose true, false or warn"),
    ] = False
    log_every_n_steps: fields.Natural | None = None
    enable_model_summary: fields.Flag | None = None
    enable_progress_bar: fields.Flag | None = None
    enable_checkpointing: fields.Flag | None = None
    sync_batchnorm: fields.Flag = False
    inference_mode: fields.Flag = True
    default_root_dir: fields.Path | None = None


class Adversary(Part):
    """Of `DistributionalAdversary`."""

    attack: fields.Node
    val_attack: fields.Node | None = None
    first_order: fields.Node | None = None
    distances: fields.Node | None = None
    whole_set: fields.Flag = True
    seed: fields.Seed = 0


class Checkpoint(Part):
    """Of `RunCheckpoint`, and of Lightning's own."""

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


class Overfitting(Part):
    """Of `OverfittingWarning`."""

    tolerance: fields.NotNegative = 0.02
    one_step: fields.Text = "val/fgsm_acc"
    multi_step: fields.Text = "val/adv_acc"


class Pictures(Part):
    """Of `AdversarialImages`."""

    folder: fields.Path
    number: fields.Count = 8
    every_n_epochs: fields.Count = 1


class SeedEpoch(Part):
    """Of `SeedEpoch`."""

    seed: fields.Seed


class Progress(Part):
    """Of `ProgressBar`."""

    leave: fields.Flag = False
    refresh_rate: fields.Natural = 1
    theme: fields.Node | None = None


class Theme(Part):
    """Of Rich's theme."""

    metrics_text_delimiter: Annotated[str, Field(strict=True), Said("is not a text", "give one")] = " "


class WeightPerturbation(Part):
    """Of `AdversarialWeightPerturbation`."""

    gamma: fields.NotNegative = 0.005
    start_epoch: fields.Natural = 0


class Warmup(Part):
    """Of `RadiusWarmup`."""

    epochs: fields.Count = 5


class Averaging(Part):
    """Of Lightning's averaging of weights."""

    decay: fields.Unit = 0.999


class Logger(Part):
    """What loggers have in common."""

    save_dir: fields.Path | None = None
    name: Annotated[str | None, Said("is not a text", "give a name")] = None
    version: Annotated[str | int | None, Said("is no version", "give a name or a number")] = None


class WandB(Logger):
    """Of W&B's logger."""

    project: fields.Text | None = None
    offline: fields.Flag = False
    log_model: Annotated[
        Annotated[bool, Field(strict=True)] | Literal["all"], Said("is neither true nor false", "choose true or false")
    ] = False
    settings: fields.Node | None = None


class WandBSettings(Part):
    """Of W&B itself."""

    quiet: fields.Flag = True


class MLFlow(Part):
    """Of MLflow's logger."""

    experiment_name: fields.Text = "wdro_train"
    run_name: fields.Text | None = None
    tracking_uri: fields.Text | None = None


COMMON: dict[str, type[Part]] = {
    "data": Images,
    "model": Network,
    "attack": Attack,
    "objective": Objective,
    "optimizer": Optimizer,
    "scheduler": Scheduler,
    "trainer": Device,
}
"""For objects of the user's own, by their group."""

_PARTS: dict[type[Part], list[Any]] = {
    WPGD: [attacks.WPGD],
    Attack: [attacks.WFGSM, attacks.KLPGD],
    Lagrangian: [attacks.Lagrangian],
    BoundaryAttack: [attacks.BoundaryAttack],
    DualAscent: [attacks.DualAscent],
    Fixed: [attacks.Fixed],
    MinimalDistance: [attacks.MinimalDistance],
    Pool: [attacks.Pool],
    Images: [data.Digits],
    TorchvisionImages: [data.TorchvisionDataModule, data.GzipDataModule],
    FolderImages: [data.ImageFolderDataModule],
    HubImages: [data.HuggingFaceDataModule],
    Network: [models.small_cnn, models.preact_resnet18, models.wide_resnet],
    ResNet: [models.resnet18],
    NamedNetwork: [
        models.torchvision_model,
        models.timm_model,
        models.huggingface_model,
        models.robustbench_model,
    ],
    Objective: [
        objectives.Adversarial,
        objectives.FirstOrderPenalty,
        objectives.Mart,
        objectives.Standard,
        objectives.WTrades,
    ],
    Optimizer: [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD],
    Scheduler: [
        torch.optim.lr_scheduler.ConstantLR,
        torch.optim.lr_scheduler.CosineAnnealingLR,
        torch.optim.lr_scheduler.MultiStepLR,
    ],
    OneCycle: [torch.optim.lr_scheduler.OneCycleLR],
    Device: [Trainer],
    Adversary: [callbacks.DistributionalAdversary],
    Checkpoint: [callbacks.RunCheckpoint, lightning_callbacks.ModelCheckpoint],
    Overfitting: [callbacks.OverfittingWarning],
    Pictures: [callbacks.AdversarialImages],
    SeedEpoch: [callbacks.SeedEpoch],
    Progress: [callbacks.ProgressBar],
    Theme: [lightning_callbacks.progress.rich_progress.RichProgressBarTheme],
    WeightPerturbation: [callbacks.AdversarialWeightPerturbation],
    Warmup: [callbacks.RadiusWarmup],
    Averaging: [lightning_callbacks.EMAWeightAveraging],
    Logger: [loggers.CSVLogger, csv_logger.RunCSVLogger, loggers.TensorBoardLogger],
    WandB: [loggers.WandbLogger],
    MLFlow: [loggers.MLFlowLogger],
    WandBSettings: [wandb.Settings],
}
PARTS: dict[Callable[..., Any], type[Part]] = {made: part for part, all_made in _PARTS.items() for made in all_made}
"""By constructor."""

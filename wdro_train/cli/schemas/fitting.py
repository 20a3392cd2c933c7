"""Which values the settings of optimizers, schedulers and the Trainer may have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, StrictStr

from wdro_train.cli.schemas import fields
from wdro_train.cli.schemas.fields import Said
from wdro_train.cli.schemas.part import Part


class OptimizerSettings(Part):
    """What optimizers have in common."""

    lr: fields.NotNegative = 1e-3
    weight_decay: fields.NotNegative = 0.0
    momentum: fields.NotNegative = 0.0
    nesterov: fields.Flag = False
    dampening: fields.Finite = 0.0
    eps: fields.NotNegative = 1e-8
    amsgrad: fields.Flag = False


class SchedulerSettings(Part):
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


class OneCycleSettings(SchedulerSettings):
    """Settings of `OneCycleLR`."""

    max_lr: fields.Positive


class TrainerSettings(Part):
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

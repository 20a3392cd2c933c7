"""Which values the settings of attacks and objectives may have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wdro_train.cli.schemas import fields
from wdro_train.cli.schemas.fields import Said
from wdro_train.cli.schemas.part import Part


class AttackSettings(Part):
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


class WPGDSettings(AttackSettings):
    """Settings of `WPGD`."""

    steps: fields.Count = 8
    step_size: fields.Positive = 1.875
    random_start: fields.Flag = True
    keep: Annotated[
        Literal["last", "best", "cheapest", "nearest"], Said("is unknown", "choose last, best, cheapest or nearest")
    ] = "last"


class LagrangianSettings(AttackSettings):
    """Settings of `Lagrangian`."""

    steps: fields.Count = 8
    step_size: fields.Positive = 1.875
    free: fields.BelowOne = 0.0
    random_start: fields.Flag = True
    rate: fields.NotNegative = 0.05
    limit: fields.UpToOne = 0.6


class WRMSettings(AttackSettings):
    """Settings of `WRM`."""

    gamma: fields.Positive = 0.385
    steps: fields.Count = 16
    step_size: fields.UpToOne = 1.0


class BoundaryAttackSettings(AttackSettings):
    """Settings of `BoundaryAttack`."""

    steps: fields.Count = 8
    step_size: fields.Positive = 3.0
    random_start: fields.NotNegative = 0.2
    bisections: fields.Natural = 0
    weighted: fields.Flag = False
    beyond: fields.NotNegative = 0.5
    marginal: fields.Node | None = None


class DualAscentSettings(Part):
    """Settings of `DualAscent`."""

    rate: fields.NotNegative = 0.05
    limit: fields.UpToOne = 0.6
    safety: fields.AtLeastOne = 1.0
    start: fields.UpToOne = 1.0


class FixedSettings(Part):
    """Settings of `Fixed`."""

    distance: fields.FiniteNumber


class MinimalDistanceSettings(Part):
    """Settings of `MinimalDistance`."""

    norm: fields.Number
    steps: fields.Count = 30
    restarts: fields.Count = 1
    targets: fields.Natural = 0
    step_size: fields.Positive | None = None
    batch_size: fields.Count | None = None


class PoolSettings(Part):
    """Settings of `Pool`."""

    attacks: Annotated[
        list[fields.Node],
        Field(strict=True, min_length=1),
        Said("is not a list of attacks", "give each with its _target_", "is empty"),
    ]


class ObjectiveSettings(Part):
    """What objectives have in common."""

    beta: fields.NotNegative = 1.0
    p: fields.Number = 2
    norm: fields.Number = 2
    delta: fields.FiniteNumber = 0
    loss: fields.Loss = "ce"


class GaussianNoiseSettings(Part):
    """Settings of `GaussianNoise`."""

    sigma: fields.Positive = 0.25


class StatisticallyRobustSettings(Part):
    """Settings of `StatisticallyRobust`."""

    kl_radius: fields.NotNegative = 0.1


class CertifiedObjectiveSettings(ObjectiveSettings):
    """What the objectives of certified training have in common."""

    kappa: fields.Unit = 0.5
    radius: fields.Node | None = None


class SabrSettings(CertifiedObjectiveSettings):
    """Settings of `Sabr`."""

    tau: fields.UpToOne = 0.4
    steps: fields.Count = 4


class LipschitzDualSettings(ObjectiveSettings):
    """Settings of `LipschitzDual`."""

    marginal: fields.Node | None = None


class OneRadiusSettings(Part):
    """Settings of `OneRadius`."""

    marginal: fields.Node | None = None


class RadiusOfImageSettings(OneRadiusSettings):
    """Settings of `RadiusOfImage`."""

    factor: fields.AtLeastOne = 1.5
    share: fields.Unit = 0.2

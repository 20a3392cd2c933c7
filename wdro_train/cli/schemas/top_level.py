"""The values that `conf/train.yaml` and `conf/evaluate.yaml` themselves may have, beside those of the groups."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict

from wdro_train.cli.schemas import fields
from wdro_train.cli.schemas.fields import Said


class Keys(BaseModel):
    """Some keys; others that the user adds are left alone."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class Finetune(Keys):
    """`finetune`."""

    ckpt_path: fields.Path | None
    init: Annotated[
        Literal["keep", "reinit_head", "perturb"], Said("is unknown", "choose keep, reinit_head or perturb")
    ]
    noise: fields.FiniteNumber
    freeze: fields.Words


class Train(Keys):
    """`conf/train.yaml`."""

    name: fields.Text
    seed: fields.Seed
    ckpt_path: fields.Path | None
    finetune: Finetune
    test: fields.Flag
    dry_run: fields.Flag
    run_dir: fields.Path
    data: fields.Node
    model: fields.Node
    attack: fields.Node
    objective: fields.Node
    optimizer: fields.Node
    scheduler: fields.Node
    trainer: fields.Node
    logger: fields.Nodes
    callbacks: fields.Nodes


class Threat(Keys):
    """`attack` of an evaluation."""

    p: fields.Number | None
    norm: fields.Number | None
    delta: fields.FiniteNumber | None


class Distances(Keys):
    """`distances`."""

    steps: fields.Count
    restarts: fields.Count
    targets: fields.Natural


class Curve(Keys):
    """`curve`."""

    p: fields.Orders
    deltas: fields.Radii | None
    alpha: fields.Share
    sided: Annotated[Literal["two", "lower", "upper"], Said("is unknown", "choose two, lower or upper")]


class Poster(Keys):
    """`poster`."""

    losses: fields.Losses
    p: fields.Orders | None
    deltas: fields.PositiveRadii | None
    pgd_steps: fields.Count
    box: fields.Flag


class Certificate(Keys):
    """`certificate`."""

    method: Annotated[
        Literal["crown", "ibp", "smoothing"] | None, Said("is unknown", "choose crown, ibp, smoothing or null")
    ]
    sigma: fields.Positive
    samples: fields.Count
    alpha: fields.Share


class Peers(Keys):
    """`peers`."""

    autoattack: fields.Flag
    square: fields.Flag


class Evaluate(Keys):
    """`conf/evaluate.yaml`."""

    name: fields.Text
    ckpt_path: fields.Checkpoints | None
    attack: Threat
    distances: Distances
    curve: Curve
    poster: Poster | None
    certificate: Certificate | None
    peers: Peers
    split: Annotated[Literal["train", "val", "test"], Said("is unknown", "choose train, val or test")]
    batch_size: fields.Count
    limit: fields.Count | None
    expectation: fields.Count
    accelerator: fields.Text
    devices: fields.Devices
    seed: fields.Seed
    pictures: fields.Natural
    resume: fields.Flag
    store: fields.Path
    run_dir: fields.Path
    data: fields.Node | None = None
    model: fields.Node | None = None
    logger: fields.Nodes | None = None


TOP_LEVELS: dict[str, type[Keys]] = {"train": Train, "evaluate": Evaluate}
"""By the name of the command."""

"""The values that `conf/train.yaml` and `conf/evaluate.yaml` themselves may have, beside those of the groups."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict

from wdro_train.certificates.named import CertificateName, RelaxationName, one_of
from wdro_train.cli.schemas import fields
from wdro_train.cli.schemas.fields import Said


class Keys(BaseModel):
    """Some keys; others that the user adds are left alone."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class FinetuneKeys(Keys):
    """What a fine-tuning starts from and which weights it leaves alone: `finetune`."""

    ckpt_path: fields.Path | None
    init: Annotated[
        Literal["keep", "reinit_head", "perturb"], Said("is unknown", "choose keep, reinit_head or perturb")
    ]
    noise: fields.FiniteNumber
    freeze: fields.Words


class TrainKeys(Keys):
    """The keys of `conf/train.yaml`; the groups' own settings have schemas of their own."""

    name: fields.Text
    seed: fields.Seed
    ckpt_path: fields.Path | None
    resume: fields.Flag
    finetune: FinetuneKeys
    channels_last: fields.Flag
    compile: fields.Flag
    test: fields.Flag
    dry_run: fields.Flag
    verbose: fields.Flag
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


class ThreatKeys(Keys):
    """The ball to judge in: `attack` of `conf/evaluate.yaml`; null is what the network was trained for."""

    p: fields.Number | None
    norm: fields.Number | None
    delta: fields.FiniteNumber | None


class DistancesKeys(Keys):
    """How hard the search for distances is: `distances`; a number makes it an effort by hand."""

    effort: Annotated[Literal["auto", "quick", "publish"], Said("is unknown", "choose auto, quick or publish")]
    steps: fields.Count | None
    restarts: fields.Count | None
    targets: fields.Natural | None


class CurveKeys(Keys):
    """Orders, radii and confidence band of the robustness curve: `curve`."""

    p: fields.Orders
    deltas: fields.Radii | None
    alpha: fields.Share
    sided: Annotated[Literal["two", "lower", "upper"], Said("is unknown", "choose two, lower or upper")]


class FirstOrderKeys(Keys):
    """Losses, orders, radii and effort of the first-order values, W-PGD and bounds: `first_order`."""

    losses: fields.Losses
    p: fields.Orders | None
    deltas: fields.PositiveRadii | None
    shares: fields.PositiveRadii
    steps: fields.Count
    box: fields.Flag
    passes: fields.Positive | None


class PosterKeys(Keys):
    """The former name of `first_order`: what is not null is given."""

    losses: fields.Losses | None = None
    p: fields.Orders | None = None
    deltas: fields.PositiveRadii | None = None
    pgd_steps: fields.Count | None = None
    box: fields.Flag | None = None


class CertificateKeys(Keys):
    """The method of the certified lower bound and its effort: `certificate`."""

    method: Annotated[CertificateName | None, Said("is unknown", f"choose {one_of(CertificateName)} or null")]
    sigma: fields.Positive
    samples: fields.Count
    alpha: fields.Share
    budget: fields.Positive
    start: Annotated[RelaxationName, Said("is unknown", f"choose {one_of(RelaxationName)}")]
    radii: fields.PositiveRadii | None


class PeersKeys(Keys):
    """Which attacks of other authors are run beside: `peers`."""

    autoattack: fields.Flag
    square: fields.Flag


class EvaluateKeys(Keys):
    """The keys of `conf/evaluate.yaml`."""

    name: fields.Text
    ckpt_path: fields.Checkpoints | None
    labels: fields.Labels | None
    attack: ThreatKeys
    distances: DistancesKeys
    curve: CurveKeys
    first_order: FirstOrderKeys | None
    poster: PosterKeys | None
    certificate: CertificateKeys | None
    peers: PeersKeys
    split: Annotated[Literal["train", "val", "test"], Said("is unknown", "choose train, val or test")]
    batch_size: fields.Count
    limit: fields.Count | None
    expectation: fields.Count
    precision: Annotated[
        Literal["32-true", "32", 32, "bf16-mixed", "bf16"], Said("is unknown", "choose 32-true or bf16-mixed")
    ]
    channels_last: fields.Flag
    compile: fields.Flag
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


TOP_LEVELS: dict[str, type[Keys]] = {"train": TrainKeys, "evaluate": EvaluateKeys}
"""By the name of the command."""

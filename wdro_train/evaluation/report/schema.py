"""The shape of `report.json` (schema 2) as types; `schema.json` says what each key means.

In memory numbers are floats. As read from the file an undefined number is null and an infinite one a string, so a
number of a report is read with `fields.to_float`.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

SCHEMA = 2
Number = float | str | None


class ThreatBlock(TypedDict):
    """The Wasserstein ball in which the worst case is reported."""

    p: Number
    norm: Number
    delta: float


class Header(TypedDict):
    """What is needed to repeat the numbers."""

    schema: int
    command: str
    created: str
    config: dict[str, Any]
    seed: int | None
    scope: str
    git_revision: str | None
    python: str
    versions: dict[str, str | None]


class HistogramBlock(TypedDict):
    """Counts of the distances of the correct images."""

    edges: list[float]
    counts: list[int]
    misclassified: int
    not_flipped: int


class RoundBlock(TypedDict):
    """A round of the search for distances."""

    kind: str
    passes: float
    asked: int
    improved: int
    accuracy: float


class ConvergenceBlock(TypedDict):
    """How the worst-case accuracy fell round by round of the search for distances."""

    rounds: list[RoundBlock]
    capped: bool


class DistancesBlock(TypedDict):
    """Distance of each image to its nearest flip, as found by attacks."""

    attack: dict[str, Any]
    values: list[Number]
    median_of_correct: Number
    histogram: HistogramBlock
    convergence: NotRequired[ConvergenceBlock]


class BandBlock(TypedDict):
    """The confidence band for the accuracy on the population."""

    alpha: float
    sided: str
    width: float
    level: float
    networks: int


class CurveBlock(TypedDict):
    """Worst-case accuracy against the radius, for one order."""

    p: Number
    deltas: list[float]
    accuracy: list[float]
    upper: list[float]
    certified: list[float] | None
    certified_lower: list[float] | None


class IntervalBlock(TypedDict):
    """Between which accuracies the truth lies in the ball of the threat, on the images and on their distribution."""

    p: Number
    delta: float
    certified: float | None
    attacked: float
    lower_end: float | None
    upper_end: float
    ratio_certified: Number
    ratio_attacked: Number
    ratio_lower_end: Number
    ratio_upper_end: Number


class DifferenceRow(TypedDict):
    """The accuracy of one network minus that of another on the same images, in the ball of the threat."""

    first: str
    second: str
    attacked: float
    attacked_low: Number
    attacked_high: Number
    enclosed_low: Number
    enclosed_high: Number
    lower_end: Number
    upper_end: Number


class DifferencesBlock(TypedDict):
    """Every network against every other one."""

    p: Number
    delta: float
    alpha: float
    level: float
    width: float
    rows: list[DifferenceRow]
    left_out: list[str]


class MoverBlock(TypedDict):
    """A correct image that the worst case moves."""

    index: int
    label: int
    becomes: int
    distance: float
    share: float


class WorstCaseBlock(TypedDict):
    """The worst case in the ball of the threat."""

    p: Number
    delta: float
    accuracy: float
    multiplier: Number
    marginal_distance: Number
    primal: float
    dual: float
    spent: float
    images_moved: int
    movers: list[MoverBlock]


class PassesRow(TypedDict):
    """How many images one measurement sent through the network."""

    measurement: str
    forward: int
    backward: int


class PosterRow(TypedDict):
    """W-FGSM and W-PGD of one loss in one ball."""

    loss: str
    p: Number
    norm: Number
    delta: float
    pgd_steps: NotRequired[int]
    v0: Number
    w0: Number
    upsilon: Number
    v_first_order: Number
    v_q: Number
    v_pgd: Number
    fgsm_acc: float
    fgsm_spent: float
    pgd_acc: float
    ratio_pgd: Number
    ratio_upper: Number
    ratio_lower_attack: Number
    ratio_lower_gradient: Number
    ratio_lower: Number
    worst_acc: float
    ratio: Number


class CertificateBlock(TypedDict):
    """A certified lower bound."""

    method: str
    level: float
    about: str
    encloses: bool
    clean_accuracy: float
    radii: list[Number]
    exact: NotRequired[dict[str, float]]


class PeerRow(TypedDict):
    """What a reference attack left."""

    name: str
    norm: Number
    delta: float
    p: Number
    images: int
    accuracy: float
    seconds: float


class PublishedRow(TypedDict):
    """A published accuracy of the same network."""

    p: Number
    norm: Number
    delta: float
    accuracy: float
    error: float
    source: str


class WarningBlock(TypedDict):
    """A reason not to believe a number."""

    check: str
    figure: Number
    text: str


class ModelReport(TypedDict):
    """One network."""

    name: str
    checkpoint: str
    trained_with: dict[str, Any]
    images: int
    images_digest: str
    sample: NotRequired[str]
    clean_accuracy: float
    norm: Number
    distances: DistancesBlock
    band: BandBlock
    curves: list[CurveBlock]
    interval: IntervalBlock
    worst_case: WorstCaseBlock
    passes: NotRequired[list[PassesRow]]
    poster: list[PosterRow]
    certificate: CertificateBlock | None
    peers: list[PeerRow]
    published: NotRequired[list[PublishedRow]]
    warnings: list[WarningBlock]


class Report(Header):
    """What was judged, how, and what came out."""

    threat: ThreatBlock
    split: str
    models: list[ModelReport]
    differences: DifferencesBlock | None

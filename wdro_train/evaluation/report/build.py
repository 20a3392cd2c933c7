"""From evidence to the report: what was judged, how, and what came out, as plain data (`report.json`, schema 2)."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wdro_train.config.run_folders import REPORT_FILE
from wdro_train.config.typed_command import typed_command
from wdro_train.evaluation.autoattack import ReferenceResult
from wdro_train.evaluation.certified_curve import CertifiedCurve
from wdro_train.evaluation.choices import CurveGrid
from wdro_train.evaluation.distances import FoundDistances
from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.first_order import RowWithWorstCase
from wdro_train.evaluation.networks import JudgedNetwork
from wdro_train.evaluation.passes import Passes
from wdro_train.evaluation.report.curves import curve_rows, histogram
from wdro_train.evaluation.report.intervals import differences, interval
from wdro_train.evaluation.report.published import published
from wdro_train.evaluation.report.schema import (
    SCHEMA,
    CertificateBlock,
    ConvergenceBlock,
    Header,
    ModelReport,
    PassesRow,
    PeerRow,
    PosterRow,
    PublishedRow,
    Report,
    ThreatBlock,
    WorstCaseBlock,
)
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.files import write_json
from wdro_train.utils.versions import git_revision, package_version

_PACKAGES = ("wdro-train", "torch", "torchvision", "lightning", "torchmetrics", "numpy")


def header(config: Any) -> Header:
    """What is needed to repeat the numbers: command, configuration, revision, versions.

    Args:
        config: The resolved configuration of `evaluate.py`, as plain data.
    """
    return {
        "schema": SCHEMA,
        "command": typed_command(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": {str(key): value for key, value in config.items()},
        "seed": config.get("seed"),
        "scope": "whole set as one distribution",
        "git_revision": git_revision(dirty=True),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in _PACKAGES},
    }


def report(
    made_by: Header,
    ball: WassersteinBall,
    split: str,
    models: list[ModelReport],
    evidence: Sequence[NetworkEvidence],
    alpha: float,
) -> Report:
    """The whole report.

    Args:
        made_by: From `header`, from before anything was judged.
        ball: The threat.
        split: The images judged: `train`, `val` or `test`.
        models: From `model`, one for each network; equal names are numbered.
        evidence: What was measured of each.
        alpha: Error probability of the intervals of the differences.
    """
    tell_apart(models)
    threat: ThreatBlock = {"p": ball.p, "norm": ball.norm, "delta": ball.delta}
    compared = differences(evidence, [model["name"] for model in models], ball, alpha)
    return Report(**made_by, threat=threat, split=split, models=models, differences=compared)


def model(
    network: JudgedNetwork,
    evidence: NetworkEvidence,
    grid: CurveGrid,
    *,
    attack: dict[str, Any],
    movers: int,
    networks: int = 1,
) -> ModelReport:
    """The block of one network.

    Args:
        network: The network.
        evidence: What was measured.
        grid: Where the curve is reported, and with which band.
        attack: Name and settings of the minimum-norm attack.
        movers: Number of images that the worst case moves first to be listed.
        networks: Number of networks of the report, for all of which the bands hold jointly.
    """
    curve, ball = evidence.curve, evidence.ball
    band = curve.band(grid.alpha, grid.sided, networks)
    return {
        "name": network.name,
        "checkpoint": str(network.path),
        "trained_with": network.config,
        "images": len(curve),
        "images_digest": evidence.images,
        "sample": evidence.sample,
        "clean_accuracy": curve.clean_accuracy,
        "norm": ball.norm,
        "distances": {
            "attack": attack,
            "values": curve.distances.tolist(),
            "median_of_correct": evidence.median_distance,
            "histogram": histogram(curve.distances),
            "convergence": _convergence(evidence.found),
        },
        "band": {
            "alpha": grid.alpha,
            "sided": band.sided,
            "width": band.width,
            "level": band.level,
            "networks": networks,
        },
        "curves": curve_rows(
            curve,
            grid.orders,
            grid.deltas,
            band,
            alone=evidence.curve_under_the_band,
            certified=None if evidence.certificate is None else evidence.certificate.curve,
            contradicted=evidence.contradicted,
        ),
        "interval": interval(evidence, band),
        "worst_case": _worst_case(evidence, movers),
        "passes": [_passes_row(name, passes) for name, passes in evidence.passes],
        "poster": [_poster_row(row) for row in evidence.rows],
        "certificate": None if evidence.certificate is None else _certificate(evidence, evidence.certificate),
        "peers": [_peer_row(reference) for reference in evidence.references],
        "published": _published(network, ball),
        "warnings": [{"check": sign.check, "figure": sign.figure, "text": sign.text} for sign in evidence.warnings],
    }


def tell_apart(models: Sequence[ModelReport]) -> None:
    """Number the models of the same name, in place.

    >>> models = [{"name": "best"}, {"name": "last"}, {"name": "best"}]
    >>> tell_apart(models)
    >>> [model["name"] for model in models]
    ['best (1)', 'last', 'best (3)']
    """
    counts = Counter(model["name"] for model in models)
    for k, model in enumerate(models, 1):
        if counts[model["name"]] > 1:
            model["name"] += f" ({k})"


def write(report: Report, folder: Path) -> Path:
    """Write `report.json`; undefined values become null, infinities the string "inf"."""
    path = folder / REPORT_FILE
    write_json(path, report, indent=1)
    return path


def _convergence(found: FoundDistances) -> ConvergenceBlock:
    return {
        "rounds": [
            {
                "kind": one.kind,
                "passes": one.passes,
                "asked": one.asked,
                "improved": one.improved,
                "accuracy": one.accuracy,
            }
            for one in found.rounds
        ],
        "capped": found.capped,
    }


def _worst_case(evidence: NetworkEvidence, movers: int) -> WorstCaseBlock:
    """The worst case in the ball of the threat, and the first images that it moves."""
    worst, ball = evidence.worst_case, evidence.ball
    return {
        "p": ball.p,
        "delta": ball.delta,
        "accuracy": worst.accuracy,
        "multiplier": worst.multiplier,
        "marginal_distance": worst.marginal_distance,
        "primal": 1 - worst.accuracy,
        "dual": worst.dual,
        "spent": worst.spent,
        "images_moved": len(evidence.moved),
        "movers": [
            {
                "index": mover.index,
                "label": mover.label,
                "becomes": mover.becomes,
                "distance": mover.distance,
                "share": mover.share,
            }
            for mover in evidence.moved[:movers]
        ],
    }


def _passes_row(measurement: str, passes: Passes) -> PassesRow:
    return {"measurement": measurement, "forward": passes.forward, "backward": passes.backward}


def _poster_row(judged: RowWithWorstCase) -> PosterRow:
    row, found = judged.row, judged.row.quantities
    return {
        "loss": row.loss,
        "p": row.ball.p,
        "norm": row.ball.norm,
        "delta": row.ball.delta,
        "pgd_steps": row.steps,
        "v0": found.v0,
        "w0": found.w0,
        "upsilon": found.upsilon,
        "v_first_order": found.v_first_order,
        "v_q": found.v_q,
        "v_pgd": row.v_pgd,
        "fgsm_acc": found.fgsm_acc,
        "fgsm_spent": found.fgsm_spent,
        "pgd_acc": row.pgd_acc,
        "ratio_pgd": row.ratio_pgd,
        "ratio_upper": found.ratio_upper,
        "ratio_lower_attack": found.ratio_lower_attack,
        "ratio_lower_gradient": found.ratio_lower_gradient,
        "ratio_lower": found.ratio_lower,
        "worst_acc": judged.worst_acc,
        "ratio": judged.ratio,
    }


def _certificate(evidence: NetworkEvidence, found: CertifiedCurve) -> CertificateBlock:
    block: CertificateBlock = {
        "method": found.method,
        "level": found.level,
        "about": found.about,
        "encloses": evidence.enclosure is not None,
        "clean_accuracy": found.curve.clean_accuracy,
        "radii": found.curve.distances.tolist(),
    }
    exact = evidence.exact
    if exact is not None:
        counts = {key: getattr(exact, key) for key in ("asked", "decided", "proven", "flipped")}
        block["exact"] = {**counts, "budget": exact.budget}
    return block


def _peer_row(reference: ReferenceResult) -> PeerRow:
    return {
        "name": reference.name,
        "norm": reference.ball.norm,
        "delta": reference.ball.delta,
        "p": reference.ball.p,
        "images": len(reference.flips),
        "accuracy": reference.accuracy,
        "seconds": reference.seconds,
    }


def _published(network: JudgedNetwork, ball: WassersteinBall) -> list[PublishedRow]:
    """What is published about the network; the figures are about CIFAR-10."""
    if network.config["data"].get("name") != "CIFAR10":
        return []
    return published(network.name, ball.norm, ball.delta)

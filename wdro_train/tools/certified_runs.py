"""Certify the runs of a study: lower bounds beside the attack's upper bounds, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, get_args

import torch

from wdro_train.certificates.base import THE_NETWORK
from wdro_train.certificates.named import PlainName, named_certificate, one_of
from wdro_train.evaluation import robustness_curve
from wdro_train.evaluation.array_batches import ArrayBatches
from wdro_train.evaluation.networks import JudgedNetwork, load_arrays
from wdro_train.theory.enclosure import Enclosure
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools.accuracies import Accuracies, Curves, accuracies, curves
from wdro_train.tools.loading import BATCH_SIZE
from wdro_train.utils.errors import UserError


class CertifiedPart(TypedDict):
    """What a certificate guarantees of a run, and what the attack leaves of the same images."""

    method: str
    images: int
    clean: float
    accuracies: Accuracies
    curves: Curves
    attacked: Accuracies
    attacked_curves: Curves


def certify(
    network: JudgedNetwork,
    method: str,
    norm: float,
    deltas: Sequence[float],
    limit: int | None,
    attacked: RobustnessCurve | None = None,
) -> CertifiedPart:
    """Certify the first test images of a run.

    Args:
        network: The network of the run.
        method: Name of the certificate, one of those that `chosen_certificates` gives.
        norm: Ground norm.
        deltas: Radii of the table.
        limit: First so many images; None for all.
        attacked: From the attack on at least these images; None to attack them now.

    Raises:
        UserError: See `named_certificate`; or an image that was flipped nearer than it is certified.
    """
    batches = ArrayBatches(load_arrays(network.config, "test", limit), BATCH_SIZE)
    certificate = named_certificate(method, norm)
    device = next(network.model.parameters()).device
    found = [certificate(network.model, x.to(device), y.to(device)) for x, y in batches]
    sure = RobustnessCurve(torch.cat([part.radii for part in found]).cpu().numpy())
    if attacked is None:
        attacked = robustness_curve(network.model, batches, norm=norm)
    both = Enclosure(sure, RobustnessCurve(attacked.distances[: len(sure)]))
    if both.contradictions:
        raise UserError(
            f"{network.path}: {both.contradictions} images are flipped nearer than {method} certifies them, so this "
            "certificate is wrong for this network; choose another one, and report it"
        )
    return {
        "method": method,
        "images": len(sure),
        "clean": sure.clean_accuracy,
        "accuracies": accuracies(both.certified, deltas),
        "curves": curves(both.certified, deltas),
        "attacked": accuracies(both.attacked, deltas),
        "attacked_curves": curves(both.attacked, deltas),
    }


def refuse_uncovered(network: JudgedNetwork, method: str, norm: float) -> None:
    """Certify one image, so that a network which the certificate does not cover is named before any work.

    Args:
        network: The network of a run.
        method: Name of the certificate.
        norm: Ground norm.

    Raises:
        UserError: It is not covered.
    """
    x, y = next(iter(ArrayBatches(load_arrays(network.config, "test", 1), 1)))
    device = next(network.model.parameters()).device
    try:
        named_certificate(method, norm)(network.model, x.to(device), y.to(device))
    except UserError as error:
        raise UserError(f"{network.path} is not covered by {method}: {error}") from error


def chosen_certificates(text: str, methods: Sequence[str]) -> dict[str, str]:
    """The certificate of each training method.

    Args:
        text: `ibp` for all methods, `lipschitz_dual=lipschitz` for one, several of these separated by commas.
        methods: The training methods of the study.

    Returns:
        Names of certificates by method; without those methods that get none.

    Raises:
        UserError: A method of which there is no run, two certificates for one, or a certificate that these tables
            cannot hold.
    """
    chosen: dict[str | None, str] = {}
    for part in filter(None, text.split(",")):
        method, given, name = part.rpartition("=")
        if (key := method if given else None) in chosen:
            raise UserError(
                f"--certificate {text} names two certificates for {key or 'all methods'}; give one, and others as "
                "<method>=<certificate>"
            )
        _refuse_certificate(name)
        chosen[key] = name
    if unknown := sorted(key for key in chosen if key is not None and key not in methods):
        raise UserError(f"--certificate: no run of {', '.join(unknown)}; choose from {', '.join(sorted(methods))}")
    found = {method: chosen.get(method, chosen.get(None)) for method in methods}
    return {method: name for method, name in found.items() if name is not None}


def _refuse_certificate(name: str) -> None:
    """Refuse a certificate that is unknown, or whose figures would not be comparable within a table."""
    if name == "smoothing":
        raise UserError(
            f"--certificate smoothing is not about {THE_NETWORK} but about its smoothed version, which the attacks of "
            "the table are not run on; choose another one, such as crown"
        )
    if name == "exact":
        raise UserError(
            "--certificate exact depends on the time for an image and the threat, which a table of several radii does "
            "not have; run evaluate.py certificate.method=exact, or choose another one, such as crown"
        )
    if name not in get_args(PlainName):
        raise UserError(f"--certificate {name} is unknown; choose {one_of(PlainName)}")

"""Certified radii of a whole set, which bound its robustness curve from below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.certificates import (
    Certificate,
    ExactRobustness,
    LinearRelaxation,
    RandomizedSmoothing,
)
from wdro_train.certificates.base import THE_NETWORK
from wdro_train.certificates.named import CertificateName, PlainName, RelaxationName, named_certificate, one_of
from wdro_train.certificates.radius_search import GivenRadii
from wdro_train.certificates.relaxation import BOUNDS
from wdro_train.evaluation.engine import Engine, Stage
from wdro_train.evaluation.piece_store import Arrays
from wdro_train.theory.ground_norm import DISTANCE_ROUNDING
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError


def make_certificate(
    method: str,
    *,
    norm: float,
    images: int,
    sigma: float,
    samples: int,
    alpha: float,
    batch_size: int,
    radii: Sequence[float] | None = None,
    start: str = "crown",
    budget: float = 10.0,
) -> Certificate:
    """Build the certificate that `certificate.method` names.

    Args:
        method: `ibp`, `crown_ibp`, `crown`, `alpha_crown`, `exact`, `lipschitz` or `smoothing`.
        norm: Ground norm of the curve that it is to bound.
        images: Size of the whole set, over which smoothing divides its error probability.
        sigma: Standard deviation of the noise of smoothing.
        samples: Noisy samples of each image in smoothing.
        alpha: Error probability of smoothing over the whole set.
        batch_size: Images per forward pass of smoothing.
        radii: The only radii at which a relaxation is tried; None for the largest one of each image.
        start: The relaxation whose radii `exact` enlarges.
        budget: Seconds an image of `exact`.

    Raises:
        UserError: Unknown method, a norm that the method does not certify, or radii that it would not try.
    """
    if radii is not None and method in ("lipschitz", "smoothing"):
        raise UserError(
            f"certificate.radii is for relaxations, which try radii one by one, not for {method}, which computes the "
            "largest one; leave it out"
        )
    relaxation = start if method == "exact" else method
    if relaxation in BOUNDS:
        # A ball includes its sphere, and a distance equal to the radius lies in it, so a little more has to be proven.
        search = None if radii is None else GivenRadii([radius * DISTANCE_ROUNDING for radius in radii])
        relaxed = LinearRelaxation(norm=norm, method=relaxation, search=search)
        return ExactRobustness(norm=norm, budget=budget, relaxation=relaxed) if method == "exact" else relaxed
    if method in get_args(PlainName):
        return named_certificate(method, norm)
    if method == "exact":
        raise UserError(f"certificate.start={start!r} is unknown; choose {one_of(RelaxationName)}")
    if method != "smoothing":
        raise UserError(f"certificate.method={method!r} is unknown; choose {one_of(CertificateName)} or null")
    if norm != 2:
        raise UserError(f"smoothing certifies the l_2 norm, not l_{norm:g}; choose attack.norm=2, or crown")
    return RandomizedSmoothing(sigma=sigma, total_images=images, n=samples, alpha=alpha, batch_size=batch_size)


def require_covered(certificate: Certificate, model: nn.Module, x: Tensor) -> None:
    """Refuse a network that a certificate does not cover, before distances are searched, which may take hours.

    A misclassified image has radius 0, so with a label that is not the network's answer the network is read and no
    radius is searched.

    Args:
        certificate: Is to certify the whole set.
        model: The network.
        x: Images in [0, 1], of which one is looked at, shape [B, ...].

    Raises:
        UserError: A part of the network that is not covered, named.
    """
    with attack_mode(model), torch.no_grad():
        logits = forward(model, x[:1])
    certificate(model, x[:1], (logits.argmax(1) + 1) % logits.shape[1])


@dataclass(frozen=True, eq=False)
class CertifiedCurve:
    """A lower bound on A_delta for all delta and p, from certified radii (theory, section 5).

    Attributes:
        method: As `certificate.method` names it.
        level: Probability with which all radii hold at once; 1 for a deterministic certificate.
        about: The classifier that the certificate speaks of, in words: smoothing speaks of another than the network.
        curve: The curve of the certified radii.
    """

    method: str
    level: float
    about: str
    curve: RobustnessCurve

    @property
    def of_the_network(self) -> bool:
        """Whether it speaks of the network that is attacked, so that the two curves enclose its accuracy."""
        return self.about == THE_NETWORK


def certified_curve(engine: Engine, certificate: Certificate, method: str) -> CertifiedCurve:
    """Certify every image of the set.

    Args:
        engine: The set and the network.
        certificate: Its radii are in the norm of the curve that they are to bound.
        method: Its name, for the report.
    """
    about: set[str] = set()

    def work(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        found = certificate(engine.model, x, y, generator=generator)
        about.add(found.about)
        return {"radii": found.radii.cpu().numpy(), "level": found.radii.new_full((1,), found.level).cpu().numpy()}

    joined = engine.run(Stage(f"certificate_{method}", certificate, work), ("radii", "level"))
    if not about:  # every batch was in the store, or done by other processes
        x, y = next(iter(engine.batches))
        about.add(certificate(engine.model, x[:1].to(engine.device), y[:1].to(engine.device)).about)
    return CertifiedCurve(method, float(joined["level"].min()), about.pop(), RobustnessCurve(joined["radii"]))

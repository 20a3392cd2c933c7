"""Certified radii of a whole set, batch by batch, as a lower bound on the curve."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from wdro_train.certificates import Certificate, LinearRelaxation, RandomizedSmoothing
from wdro_train.certificates.relaxed_network import Method
from wdro_train.evaluation.engine import Engine, Stage
from wdro_train.evaluation.piece_store import Arrays
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError


def make_certificate(
    method: str, *, norm: float, images: int, sigma: float, samples: int, alpha: float, batch_size: int
) -> Certificate:
    """The certificate of that name.

    Args:
        method: `crown`, `ibp` or `smoothing`.
        norm: Ground norm of the curve it is to bound.
        images: Size of the whole set, over which smoothing divides its error probability.
        sigma: Smoothing's noise.
        samples: Smoothing's samples an image.
        alpha: Smoothing's error probability over the whole set.
        batch_size: Images per forward pass of smoothing.

    Raises:
        UserError: Unknown method, or smoothing for another norm than 2.
    """
    if method in ("crown", "ibp"):
        return LinearRelaxation(norm=norm, method=cast(Method, method))
    if method != "smoothing":
        raise UserError(f"certificate.method={method!r} is unknown; choose crown, ibp, smoothing or null")
    if norm != 2:
        raise UserError(f"smoothing certifies the l_2 norm, not l_{norm:g}; choose attack.norm=2, or crown")
    return RandomizedSmoothing(sigma=sigma, total_images=images, n=samples, alpha=alpha, batch_size=batch_size)


def certified_curve(engine: Engine, certificate: Certificate, method: str) -> tuple[RobustnessCurve, dict[str, Any]]:
    """The certified curve and what it is a certificate of.

    Args:
        engine: The set and the network.
        certificate: Its radii are for the curve's norm.
        method: Its name, for the report.
    """
    about: dict[str, Any] = {"method": method}

    def work(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        found = certificate(engine.model, x, y, generator=generator)
        return {"radii": found.radii.cpu().numpy(), "level": found.radii.new_full((1,), found.level).cpu().numpy()}

    joined = engine.run(Stage(f"certificate_{method}", certificate, work), ("radii", "level"))
    x, y = next(iter(engine.batches))
    sample = certificate(engine.model, x[:1].to(engine.device), y[:1].to(engine.device))
    about |= {
        "level": float(joined["level"].min()),
        "about": sample.about,
        "clean_accuracy": float((joined["radii"] > 0).mean()),
        "radii": joined["radii"].tolist(),
    }
    return RobustnessCurve(joined["radii"]), about

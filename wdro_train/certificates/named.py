"""The certificates that configurations name, each name written once."""

from __future__ import annotations

from typing import Literal, get_args

from wdro_train.certificates.base import Certificate
from wdro_train.certificates.relaxation import BOUNDS, LinearRelaxation
from wdro_train.utils.errors import UserError

RelaxationName = Literal["ibp", "crown_ibp", "crown", "alpha_crown"]
"""A `LinearRelaxation`, by how it bounds margins, cheapest first: needs nothing but the norm."""
CertificateName = Literal[RelaxationName, "exact", "smoothing"]
"""What `certificate.method` may be; `exact` and `smoothing` take a time and a noise."""


def one_of(names: object) -> str:
    """The names of a type, for a sentence: "ibp, crown_ibp, crown, alpha_crown".

    Args:
        names: `RelaxationName` or `CertificateName`.
    """
    return ", ".join(get_args(names))


def named_relaxation(name: str, norm: float) -> Certificate:
    """The certificate of a name that needs nothing but a norm.

    Args:
        name: A `RelaxationName`.
        norm: Ground norm, 1, 2 or inf.

    Raises:
        UserError: Another name, or another norm.
    """
    if name not in BOUNDS:
        raise UserError(f"certificate={name!r} is unknown; choose {one_of(RelaxationName)}, or give an object")
    return LinearRelaxation(norm=norm, method=name)

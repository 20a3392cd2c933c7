"""The certificates that configurations name, each name written once."""

from __future__ import annotations

from typing import Literal, get_args

from wdro_train.certificates.base import Certificate
from wdro_train.certificates.lipschitz import LipschitzCertificate
from wdro_train.certificates.relaxation import BOUNDS, LinearRelaxation
from wdro_train.utils.errors import UserError

RelaxationName = Literal["ibp", "crown_ibp", "crown", "alpha_crown"]
"""A `LinearRelaxation`, by how it bounds margins, cheapest first."""
PlainName = Literal[RelaxationName, "lipschitz"]
"""A certificate that needs nothing but a norm."""
CertificateName = Literal[PlainName, "exact", "smoothing"]
"""What `certificate.method` may be; `exact` and `smoothing` have settings of their own."""


def one_of(names: object) -> str:
    """The names of a type, for a sentence.

    Args:
        names: One of the types above.

    >>> one_of(PlainName)
    'ibp, crown_ibp, crown, alpha_crown, lipschitz'
    """
    return ", ".join(get_args(names))


def named_certificate(name: str, norm: float) -> Certificate:
    """The certificate of a name that needs nothing but a norm.

    Args:
        name: A `PlainName`.
        norm: Ground norm of the radii.

    Raises:
        UserError: Another name, or a norm that it does not certify.
    """
    if name in BOUNDS:
        return LinearRelaxation(norm=norm, method=name)
    if name != "lipschitz":
        raise UserError(f"certificate={name!r} is unknown; choose {one_of(PlainName)}, or give an object")
    return LipschitzCertificate(norm=norm)

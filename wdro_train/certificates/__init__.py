"""Certificates: radii within which no attack can flip an image, and with them lower bounds on worst-case accuracy.

One protocol (`Certificate`), one file a certificate.
"""

from wdro_train.certificates.base import Certificate, Radii
from wdro_train.certificates.exact import ExactRobustness
from wdro_train.certificates.lipschitz import LipschitzCertificate
from wdro_train.certificates.relaxation import LinearRelaxation
from wdro_train.certificates.smoothing import RandomizedSmoothing

__all__ = [
    "Certificate",
    "ExactRobustness",
    "LinearRelaxation",
    "LipschitzCertificate",
    "Radii",
    "RandomizedSmoothing",
]

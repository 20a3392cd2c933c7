"""What every certificate shares: the protocol and its result.

A certified radius is a lower bound on d_i, the distance from the image to its nearest misclassified point. In place
of the distances in `RobustnessCurve` certified radii give a lower bound on worst-case accuracy, for every radius and
every Wasserstein order.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Radii:
    """Certified radii of a batch.

    Attributes:
        radii: r_i with no misclassified point at ||x' - x_i||_s < r_i, x' in [0, 1]^n; float64, shape [N]; 0 where
            the image is misclassified or nothing could be certified.
        correct: The images classified correctly to begin with, boolean, shape [N].
        norm: Ground norm s.
        level: Probability with which all radii hold simultaneously; 1 for a deterministic certificate.
        about: The classifier that the certificate speaks of, in words.
    """

    radii: Tensor
    correct: Tensor
    norm: float
    level: float
    about: str


class Certificate(Protocol):
    """A map from a batch to certified radii."""

    norm: float

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Radii:
        """Certify a batch.

        Args:
            model: Maps images to logits.
            x: Images in [0, 1], shape [N, C, H, W].
            y: Labels, shape [N].
            generator: Source of noise; None for the default one.
        """
        ...


class _Precision:
    """Float32 precision of all operations; several threads may ask for the full one at once."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._before: list[str] = []

    def enter(self) -> None:
        with self._lock:
            if not self._users:
                self._before = [operation.fp32_precision for operation in self._operations()]
                for operation in self._operations():
                    operation.fp32_precision = "ieee"
            self._users += 1

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                for operation, precision in zip(self._operations(), self._before, strict=True):
                    operation.fp32_precision = precision

    def _operations(self) -> list[Any]:
        backends: Any = torch.backends
        on_gpu = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        return [*on_gpu, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]


_PRECISION = _Precision()


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 arithmetic as IEEE 754 has it inside the block; afterwards whatever was chosen before.

    Convolutions on a GPU use TF32 by default, and matrix products do if they are allowed to: 10 bits of mantissa, far
    outside the rounding that a certificate allows for.
    """
    _PRECISION.enter()
    try:
        yield
    finally:
        _PRECISION.leave()

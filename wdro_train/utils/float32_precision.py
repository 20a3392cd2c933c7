"""Full float32 precision, which judged numbers need and which GPUs do not compute in unless they are told to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class _Precision:
    """The float32 precision of all operations of the process, which several threads may want in full at once."""

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
    """Float32 arithmetic as IEEE 754 defines it inside the block; afterwards whatever was chosen before.

    Convolutions on a GPU use TF32 by default, and matrix products do where they are allowed to: 10 bits of mantissa, so
    errors of 1e-3, far above the rounding that a certificate allows for, and enough for a point that an attack calls
    misclassified to be classified correctly by the network as float32 computes it.
    """
    _PRECISION.enter()
    try:
        yield
    finally:
        _PRECISION.leave()

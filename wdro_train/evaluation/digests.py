"""SHA-256 digests of plain data, images, arrays and files, by which kept results are known again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def digest(described: Any) -> str:
    """SHA-256 of plain data, in hexadecimal."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def batch_digest(x: Tensor, y: Tensor) -> str:
    """SHA-256 of a batch's images and labels, their types and shapes included."""
    return digest([tensor_digest(x), tensor_digest(y)])


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 of an array's values, type and shape."""
    return digest([str(array.dtype), list(array.shape), _bytes_digest(array)])


def tensor_digest(value: Tensor) -> list[Any]:
    """A tensor's type, layout and shape, and the SHA-256 of its values."""
    kind = [str(value.dtype), str(value.layout), list(value.shape)]
    value = value.detach().cpu()
    value = value.dequantize() if value.is_quantized else value if value.layout == torch.strided else value.to_dense()
    data = value.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
    return [*kind, _bytes_digest(data.numpy())]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _bytes_digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()

"""Whether the images are still the ones that a run began with: a digest of their content.

Finished parts of an evaluation and the best scores of a training are valid for the images they were computed on. The
same folder may hold others tomorrow, so the digest goes with the results.
"""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from wdro_train.data.image_sets import ImageArrays, ImageFiles, ImageSet, KeptInMemory

_DECODED_AT_ONCE = 256  # bounds the memory: 150 MB for colour images of 224 pixels a side in float32
_HEX_DIGITS = 16  # 64 bits: by chance two sets share a digest in one of 1.8e19 comparisons


@runtime_checkable
class DigestedSource(Protocol):
    """A source of images that can tell whether they have been replaced, without decoding them."""

    def digest(self, positions: Tensor) -> str:
        """A digest of the images at these positions, as they are stored.

        Args:
            positions: Shape [N].
        """
        ...


def content_digest(arrays: ImageSet) -> str:
    """A digest of the images and labels of a set, 16 hexadecimal digits of SHA-256.

    Images in memory are digested as they lie there. Images in files are digested as they are stored where their source
    is a `DigestedSource`, and decoded otherwise.

    Args:
        arrays: The set.
    """
    found = hashlib.sha256(arrays.labels.numpy().tobytes())
    if isinstance(arrays, ImageArrays):
        found.update(f"{arrays.images.dtype} {arrays.scale}".encode())
        found.update(arrays.images.contiguous().view(torch.uint8).numpy().data)
    elif isinstance(arrays, ImageFiles) and isinstance(source := _source(arrays), DigestedSource):
        found.update(source.digest(arrays.positions).encode())
    else:
        for rows in torch.split(torch.arange(len(arrays.labels)), _DECODED_AT_ONCE):
            found.update(arrays.batch(rows).contiguous().numpy().data)
    return found.hexdigest()[:_HEX_DIGITS]


def _source(files: ImageFiles) -> object:
    """Where the images come from, whether they are kept in memory or not."""
    return files.read.source if isinstance(files.read, KeptInMemory) else files.read

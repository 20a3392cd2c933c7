"""Test images that lie in two NumPy files, as corrupted test sets and verification benchmarks are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wdro_train.data.base import ImageDataModule
from wdro_train.data.image_sets import ImageArrays
from wdro_train.utils.contract import PIXEL_ROUNDING
from wdro_train.utils.errors import UserError


class NumpyDataModule(ImageDataModule):
    """Images and labels out of two .npy files; they are a test set, and there is nothing to train on.

    Args:
        images: File of the images, shape [N, C, H, W], [N, H, W, C], or [N, H, W] of grey ones; integers in 0..255, or
            floating-point pixels in [0, 1].
        labels: File of the labels, integers in 0..m-1, N of them in any shape.
        **kwargs: See `ImageDataModule`.
    """

    def __init__(self, images: str, labels: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images, self.labels = Path(images), Path(labels)

    def load(self) -> dict[str, ImageArrays]:
        """The test set, which is all there is.

        Raises:
            UserError: A file that cannot be read, or images of another shape or number.
        """
        found, labels = _array(self.images, "images"), _array(self.labels, "labels").reshape(-1)
        if not len(labels):
            raise UserError(f"data.labels={self.labels} holds no label; give those of the images")
        channels, height, width = self.shape
        if found.ndim == 4 and found.shape[1:] == (height, width, channels):
            found = np.moveaxis(found, -1, 1)
        if found.shape not in {(len(labels), height, width), (len(labels), channels, height, width)}:
            raise UserError(
                f"data.images={self.images} has the shape {list(found.shape)}, which are not {len(labels)} images of "
                f"data.shape={list(self.shape)} for the {len(labels)} labels of data.labels={self.labels}; give "
                "data.shape=[C,H,W], or the labels of these images"
            )
        images = torch.from_numpy(np.ascontiguousarray(found)).reshape(-1, channels, height, width)
        if not images.is_floating_point():
            return {"test": ImageArrays(images, torch.from_numpy(labels))}
        low, high = images.min().item(), images.max().item()
        if not -PIXEL_ROUNDING <= low <= high <= 1 + PIXEL_ROUNDING:
            raise UserError(
                f"data.images={self.images} has floating-point pixels from {low:.4g} to {high:.4g}, outside [0, 1]; "
                "save them divided by 255, or as integers in 0..255"
            )
        return {"test": ImageArrays(images.float(), torch.from_numpy(labels), scale=1.0)}


def _array(path: Path, key: str) -> NDArray[Any]:
    """The array of a .npy file; objects in it, which would be programs, are not read."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"data.{key}={path} cannot be read ({error}); give a .npy file with one array") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"data.{key}={path} holds several arrays; give a .npy file with one")
    return found

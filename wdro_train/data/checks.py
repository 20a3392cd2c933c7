"""What is wrong with a set of images is said before the first batch: labels, shapes, and the scale of the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wdro_train.data.image_sets import ImageArrays, ImageFiles, ImageSet
from wdro_train.utils.contract import PIXEL_ROUNDING
from wdro_train.utils.errors import UserError


def checked_set(arrays: ImageSet, name: str, shape: Sequence[int], num_classes: int) -> ImageSet:
    """A set whose images have the configured shape and whose labels are class numbers.

    Args:
        arrays: As a data module has loaded it.
        name: What the set is called in messages, such as `training`.
        shape: (C, H, W) of its images.
        num_classes: m; its labels are in 0..m-1.

    Returns:
        The set, with int64 labels.

    Raises:
        UserError: Says what is wrong, and what to change.
    """
    if isinstance(arrays, ImageArrays):
        arrays = arrays._replace(images=torch.as_tensor(arrays.images))
        if len(arrays.images) != len(arrays.labels):
            raise UserError(
                f"there are {len(arrays.images)} {name} images but {len(arrays.labels)} labels; give one label an image"
            )
    if isinstance(arrays, ImageArrays | ImageFiles):
        arrays = arrays._replace(labels=class_numbers(arrays.labels, name))
    elif arrays.labels.dtype != torch.int64:
        raise UserError(f"the {name} labels are {arrays.labels.dtype}; make them int64 in {type(arrays).__name__}")
    if len(arrays.labels) == 0:
        raise UserError(f"the {name} set has no images; add some, or leave the set out")
    found = tuple(arrays.batch(torch.arange(1)).shape[1:])
    if found != tuple(shape):
        raise UserError(f"the {name} images have shape {found}, not data.shape={tuple(shape)}")
    low, high = int(arrays.labels.min()), int(arrays.labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(
            f"the {name} labels range over [{low}, {high}], outside 0..{num_classes - 1}; "
            "correct the labels or data.num_classes"
        )
    if isinstance(arrays, ImageArrays):
        _check_pixels(name, arrays)
    return arrays


def class_numbers(labels: Any, name: str) -> Tensor:
    """Labels as int64, shape [N], from whole numbers of any type.

    Args:
        labels: A tensor, an array or a list.
        name: What the set is called in the message.

    Raises:
        UserError: Strings, fractions, missing values, or more than one label an image.
    """
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "biu":
        kind = str(values.dtype) if values.ndim == 1 else f"{values.dtype} of shape {list(values.shape)}"
        raise UserError(f"the {name} labels are {kind}, not class numbers; give one whole number an image")
    return torch.as_tensor(values.astype(np.int64))


def _check_pixels(name: str, arrays: ImageArrays) -> None:
    """Refuse pixels that `scale` does not bring to [0, 1]."""
    images = arrays.images
    # PyTorch lacks the extremes of some integers, and NumPy those of some floating-point types.
    pair = images.aminmax() if images.is_floating_point() else (images.numpy().min(), images.numpy().max())
    darkest, brightest = map(float, pair)
    if not (darkest >= 0 and brightest <= arrays.scale * (1 + PIXEL_ROUNDING)):
        raise UserError(
            f"the {name} images range over [{darkest:g}, {brightest:g}], outside [0, {arrays.scale:g}]; "
            "give ImageArrays their full scale"
        )
    if images.is_floating_point() and brightest <= 1 < arrays.scale:
        raise UserError(
            f"the {name} images are floating-point numbers in [0, 1] already, and would be divided by "
            f"{arrays.scale:g}; give ImageArrays(..., scale=1)"
        )

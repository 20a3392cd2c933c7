"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels that ship with the library."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from wdro_train.data.base import ImageDataModule
from wdro_train.data.image_sets import ImageArrays


class Digits(ImageDataModule):
    """Handwritten digits, 8x8 pixels with 17 grey levels, 10 classes; nothing has to be downloaded.

    The set has no official test part: a fifth of the images, stratified by class and always the same, is the test set.

    Args:
        **kwargs: See `ImageDataModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def load(self) -> tuple[ImageArrays, ImageArrays]:
        """Four fifths of the images for training and the rest for testing, drawn class by class, always alike."""
        data = load_digits()
        images = torch.as_tensor(data.images).to(torch.uint8)[:, None]
        labels = torch.as_tensor(data.target).long()
        kept, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=data.target)
        return ImageArrays(images[kept], labels[kept], 16.0), ImageArrays(images[test], labels[test], 16.0)

"""Data modules: images in [0, 1], three disjoint sets."""

from wdro_train.data.base import ImageArrays, ImageDataModule, ImageFiles, ImageSet
from wdro_train.data.digits import Digits
from wdro_train.data.folders import HuggingFaceDataModule, ImageFolderDataModule
from wdro_train.data.torchvision_sets import GzipDataModule, TorchvisionDataModule

__all__ = [
    "Digits",
    "GzipDataModule",
    "HuggingFaceDataModule",
    "ImageArrays",
    "ImageDataModule",
    "ImageFiles",
    "ImageFolderDataModule",
    "ImageSet",
    "TorchvisionDataModule",
]

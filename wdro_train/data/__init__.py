"""Data modules: images in [0, 1], three disjoint sets."""

from wdro_train.data.base import ImageArrays, ImageDataModule, ImageFiles, ImageSet, content_digest, describe_sample
from wdro_train.data.decoding import UnreadableImageError
from wdro_train.data.digits import Digits
from wdro_train.data.folders import HuggingFaceDataModule, ImageFolderDataModule, class_folders
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
    "UnreadableImageError",
    "class_folders",
    "content_digest",
    "describe_sample",
]

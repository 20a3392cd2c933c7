"""Data modules: labelled images in [0, 1], in three disjoint sets for training, validation and test."""

from wdro_train.data.base import ImageDataModule
from wdro_train.data.decoding import UnreadableImageError
from wdro_train.data.digest import content_digest
from wdro_train.data.digits import Digits
from wdro_train.data.folders import ImageFolderDataModule, class_folders
from wdro_train.data.huggingface_datasets import HuggingFaceDataModule
from wdro_train.data.image_sets import ImageArrays, ImageFiles, ImageSet, describe_sample
from wdro_train.data.numpy_files import NumpyDataModule
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
    "NumpyDataModule",
    "TorchvisionDataModule",
    "UnreadableImageError",
    "class_folders",
    "content_digest",
    "describe_sample",
]

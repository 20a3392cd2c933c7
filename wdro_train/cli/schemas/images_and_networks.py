"""Which values the settings of sets of images and of networks may have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wdro_train.cli.schemas import fields
from wdro_train.cli.schemas.fields import Said
from wdro_train.cli.schemas.part import Part


class ImagesSettings(Part):
    """What sets of images have in common."""

    shape: fields.Shape
    num_classes: fields.Classes
    mean: fields.Means
    std: fields.Deviations
    delta: Annotated[
        dict[str, fields.FiniteNumber], Field(strict=True), Said("is not a radius for each norm", "as {linf: 8/255}")
    ]
    batch_size: fields.Count = 128
    eval_batch_size: fields.Count = 512
    val_fraction: fields.Share = 0.1
    split_seed: fields.Seed = 0
    seed: fields.Seed = 0
    num_workers: fields.Natural = 0
    augment: fields.Nodes | None = None
    keep_decoded: fields.Flag = False


class TorchvisionImagesSettings(ImagesSettings):
    """Settings of `TorchvisionDataModule` and `GzipDataModule`."""

    name: fields.TorchvisionSet
    root: fields.Path = "data"
    download: fields.Flag = False
    gz_folder: fields.Path | None = None
    package: fields.Text | None = None


class FolderImagesSettings(ImagesSettings):
    """Settings of `ImageFolderDataModule`."""

    root: fields.Path
    folders: fields.Folders
    resize: fields.Count | None = None
    subset: fields.Path | None = None


class NumpyImagesSettings(ImagesSettings):
    """Settings of `NumpyDataModule`."""

    images: fields.Path
    labels: fields.Path


class HubImagesSettings(ImagesSettings):
    """Settings of `HuggingFaceDataModule`."""

    name: fields.Text
    image: fields.Text = "image"
    label: fields.Text = "label"
    splits: fields.Folders | None = None
    resize: fields.Count | None = None


class AnyNetworkSettings(Part):
    """What can be said of any network, whatever makes it."""

    weights: fields.Path | None = None
    weights_key: fields.Text | None = None
    normalize: fields.Normalization | None = None


class NetworkSettings(AnyNetworkSettings):
    """What networks of this package have in common."""

    shape: fields.Shape | None = None
    num_classes: fields.Classes = 10
    mean: fields.Means | None = None
    std: fields.Deviations | None = None
    width: fields.Count = 1
    depth: fields.Count = 10
    dropout: fields.BelowOne = 0.0
    final_bn: fields.Flag = True
    active_shortcut: fields.Flag = False
    pretrained: fields.Flag = False


class SmallCnnSettings(NetworkSettings):
    """Settings of `small_cnn`."""

    activation: Annotated[Literal["relu", "elu"], Said("is unknown", "choose relu or elu")] = "relu"


class LipschitzCnnSettings(NetworkSettings):
    """Settings of `lipschitz_cnn`."""

    channels: fields.Count = 16
    blocks: fields.Count = 2


class ResNetSettings(NetworkSettings):
    """Settings of `resnet18`."""

    small_stem: fields.Flag | None = None


class OnnxSettings(AnyNetworkSettings):
    """Settings of `onnx_model`."""

    path: fields.Path
    shape: fields.Shape


class NamedNetworkSettings(NetworkSettings):
    """Settings of a library's network, chosen by name."""

    name: fields.Text
    small_stem: fields.Flag = False
    options: fields.Settings | None = None
    root: fields.Path = "models"
    threat: Annotated[
        Literal["Linf", "L2"], Said("is no threat of RobustBench's networks here", "choose Linf or L2")
    ] = "Linf"

"""MNIST, Fashion-MNIST and CIFAR in torchvision's folder layout, downloaded on request."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets

from wdro_train.data.base import ImageDataModule
from wdro_train.data.image_sets import ImageArrays
from wdro_train.utils.errors import UserError

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class TorchvisionDataModule(ImageDataModule):
    """A dataset of torchvision that has a part `train=True` and a part `train=False`, held in memory.

    Args:
        name: Its class in `torchvision.datasets`, such as `CIFAR10`.
        root: The folder that holds its files, in torchvision's layout.
        download: Fetch from the internet what is missing in the folder.
        **kwargs: See `ImageDataModule`.
    """

    def __init__(self, *, name: str, root: str = "data", download: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.make: Callable[..., Any] = getattr(datasets, name)
        self.dataset = name
        self.root = Path(root)
        self.download = download

    def prepare_data(self) -> None:
        """Download once, on one process.

        Raises:
            UserError: No network, or no such file there.
        """
        if self.download:
            try:
                for train in (True, False):
                    self.make(self.root, train=train, download=True)
            except (RuntimeError, OSError) as error:
                reason = str(error).strip().splitlines()[-1]
                raise UserError(
                    f"{self.dataset} could not be downloaded ({reason}); put its files under {self.root.resolve()} "
                    "in torchvision's layout and set data.download=false"
                ) from error

    def load(self) -> tuple[ImageArrays, ImageArrays]:
        """The training part and the test part.

        Raises:
            UserError: The files are not there, or not whole.
        """
        return self._read(self.root)

    def _read(self, root: Path) -> tuple[ImageArrays, ImageArrays]:
        try:
            train, test = (self.make(root, train=part, download=False) for part in (True, False))
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:  # what torchvision's readers raise
            raise UserError(self._how_to_get()) from error
        self.class_names = getattr(train, "classes", None)
        return _arrays(train), _arrays(test)

    def _how_to_get(self) -> str:
        return (
            f"{self.dataset} is missing or damaged under {self.root.resolve()}; run once with data.download=true, "
            "or point data.root at a folder in torchvision's layout"
        )


class GzipDataModule(TorchvisionDataModule):
    """MNIST and sets of its format, which are also read from a folder with their four `.gz` files as published.

    Args:
        gz_folder: Where a package of the operating system installs the four files; used if `root` does not hold them.
        package: The Debian package that does so, for the error message.
        **kwargs: See `TorchvisionDataModule`.
    """

    def __init__(self, *, gz_folder: str | None = None, package: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gz_folder = None if gz_folder is None else Path(gz_folder)
        self.package = package

    def load(self) -> tuple[ImageArrays, ImageArrays]:
        """Training and test part, from `root` (torchvision's layout or `.gz` files), or else from `gz_folder`."""
        if not _has_all(self.root / self.dataset / "raw"):
            for folder in (self.root, self.gz_folder):
                if folder is not None and _has_all(folder, ".gz"):
                    return self._unpack(folder)
        return super().load()

    def _unpack(self, folder: Path) -> tuple[ImageArrays, ImageArrays]:
        with tempfile.TemporaryDirectory() as scratch:
            raw = Path(scratch) / self.dataset / "raw"
            raw.mkdir(parents=True)
            for name in _IDX_FILES:
                try:
                    with gzip.open(folder / f"{name}.gz") as packed, (raw / name).open("wb") as plain:
                        shutil.copyfileobj(packed, plain)
                except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                    raise UserError(f"{folder / name}.gz is damaged ({error}); fetch it again") from error
            return self._read(Path(scratch))

    def _how_to_get(self) -> str:
        if self.package is None:
            return super()._how_to_get()
        return f"{super()._how_to_get()}, or install the Debian package {self.package} (apt install {self.package})"


def _has_all(folder: Path, suffix: str = "") -> bool:
    """Whether a folder has the four files of such a set."""
    return all((folder / f"{name}{suffix}").is_file() for name in _IDX_FILES)


def _arrays(dataset: Any) -> ImageArrays:
    """uint8 images [N, C, H, W] and labels of a torchvision dataset held in memory."""
    images = torch.as_tensor(dataset.data)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)
    return ImageArrays(images.contiguous(), torch.as_tensor(dataset.targets).long())

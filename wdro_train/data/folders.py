"""Images that stay in their files: a folder a class, or a dataset of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from wdro_train.data.base import ImageDataModule, ImageFiles, ImageSet
from wdro_train.errors import UserError
from wdro_train.packages import optional

PARTS = ("train", "val", "test")


class Fit:
    """An image of any size and colour mode as integers of one shape: shorter side to `resize`, then the centre.

    Args:
        shape: (C, H, W); one channel is grey, three are RGB.
        resize: Pixels of the shorter side; None for the larger of H and W.
    """

    def __init__(self, shape: Sequence[int], resize: int | None) -> None:
        if shape[0] not in (1, 3):
            raise UserError(f"data.shape={list(shape)} has {shape[0]} channels; image files have 1 or 3")
        side = max(shape[1:])
        if resize is not None and resize < side:
            raise UserError(f"data.resize={resize} is smaller than the images of data.shape={list(shape)}")
        self.mode = "L" if shape[0] == 1 else "RGB"
        crop = [v2.Resize(side if resize is None else resize), v2.CenterCrop(list(shape[1:]))]
        self.transform = v2.Compose([*crop, v2.PILToTensor()])

    def __call__(self, image: Image.Image) -> Tensor:
        """uint8, shape (C, H, W)."""
        pixels: Tensor = self.transform(image.convert(self.mode))
        return pixels


class ImageFolderDataModule(ImageDataModule):
    """One folder a set and in it one folder a class, decoded as they are needed.

    A set whose folder is null or not there is split off the training set; without a training folder the others can
    still be judged.

    Args:
        root: The folder.
        folders: Where `train`, `val` and `test` are in it.
        resize: See `Fit`.
        subset: A file that lists the test images to use, one `class/name` a line; null for all.
        **kwargs: See `ImageDataModule`.
    """

    def __init__(
        self,
        *,
        root: str,
        folders: Mapping[str, str | None],
        resize: int | None = None,
        subset: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.folders = Path(root), dict(folders)
        self.subset = None if subset is None else Path(subset)
        self.fit = Fit(self.shape, resize)

    def load(self) -> Mapping[str, ImageSet]:
        """The sets there are.

        Raises:
            UserError: No folder, no images in it, or other classes than in the first.
        """
        found: dict[str, ImageFolder] = {}
        for name in PARTS:
            part = self.folders.get(name)
            if part is not None and (self.root / part).is_dir():
                try:
                    found[name] = ImageFolder(str(self.root / part))
                except FileNotFoundError as error:
                    raise UserError(f"{self.root / part} needs one folder of images a class ({error})") from error
        if not found:
            raise UserError(
                f"data.root={self.root} has no folder {', '.join(filter(None, self.folders.values()))}; "
                "put one folder a class in train/"
            )
        classes = next(iter(found.values())).classes
        for name, files in found.items():
            if files.classes != classes:
                odd = sorted(set(files.classes) ^ set(classes))
                raise UserError(f"{self.root / str(self.folders[name])} has other classes: {', '.join(odd[:3])}")
        sets: dict[str, ImageSet] = {name: self._set(files) for name, files in found.items()}
        if self.subset is not None:
            if "test" not in found:
                raise UserError(f"data.subset={self.subset} chooses test images, but there is no test folder")
            sets["test"] = self._chosen(found["test"], sets["test"])
        return sets

    def _set(self, files: ImageFolder) -> ImageFiles:
        paths = [path for path, _ in files.samples]
        return ImageFiles(_Reader(paths, self.fit), torch.as_tensor(files.targets), torch.arange(len(paths)))

    def _chosen(self, files: ImageFolder, whole: ImageSet) -> ImageSet:
        """The images of the list, in its order."""
        assert self.subset is not None
        if not self.subset.is_file():
            raise UserError(f"there is no list data.subset={self.subset}; write one class/name a line")
        rows = {"/".join(Path(path).parts[-2:]): row for row, (path, _) in enumerate(files.samples)}
        names = self.subset.read_text(encoding="utf-8").split()
        absent = [name for name in names if name not in rows]
        if absent or not names:
            raise UserError(
                f"{len(absent)} of {len(names)} images of data.subset={self.subset} are not under {files.root}"
                + (f", such as {absent[0]}" if absent else "")
            )
        return whole.take(torch.as_tensor([rows[name] for name in names]))


class HuggingFaceDataModule(ImageDataModule):
    """A dataset of Hugging Face `datasets`, decoded as it is needed.

    Args:
        name: On the hub, or a local folder: one that `load_dataset` reads, or one that `save_to_disk` wrote.
        image: Column of the images.
        label: Column of the labels, class numbers.
        splits: Names of `train`, `val` and `test` in it; null is split off the training set.
        resize: See `Fit`.
        **kwargs: See `ImageDataModule`.
    """

    def __init__(
        self,
        *,
        name: str,
        image: str = "image",
        label: str = "label",
        splits: Mapping[str, str | None],
        resize: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset, self.image, self.label, self.splits = name, image, label, dict(splits)
        self.fit = Fit(self.shape, resize)

    def load(self) -> Mapping[str, ImageSet]:
        """The splits there are.

        Raises:
            UserError: datasets is not installed, or finds no such dataset, split or column.
        """
        datasets = optional("datasets", "data")
        saved = (Path(self.dataset) / "dataset_dict.json").is_file()
        try:
            parts = datasets.load_from_disk(self.dataset) if saved else datasets.load_dataset(self.dataset)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"data.name={self.dataset} could not be loaded ({reason}); give a name or folder"
            ) from error
        sets: dict[str, ImageSet] = {}
        for name, split in self.splits.items():
            if split is None:
                continue
            if split not in parts:
                raise UserError(f"data.splits.{name}={split} is not in {self.dataset}; it has {', '.join(parts)}")
            part = parts[split]
            for column in (self.image, self.label):
                if column not in part.column_names:
                    raise UserError(
                        f"{self.dataset} has no column {column}, only {', '.join(part.column_names)}; "
                        "set data.image and data.label"
                    )
            labels = torch.as_tensor(part[self.label][:])
            sets[name] = ImageFiles(_Column(part, self.image, self.fit), labels, torch.arange(len(labels)))
        return sets


class _Reader:
    """Decodes files; plain data, so that loader processes can have it."""

    def __init__(self, paths: list[str], fit: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.fit = paths, fit

    def __call__(self, position: int) -> Tensor:
        path = self.paths[position]
        try:
            with Image.open(path) as image:
                return self.fit(image)
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{path} cannot be read as an image; mend or remove it") from error


class _Column:
    """Decodes images of a dataset."""

    def __init__(self, part: Any, column: str, fit: Callable[[Image.Image], Tensor]) -> None:
        self.part, self.column, self.fit = part, column, fit

    def __call__(self, position: int) -> Tensor:
        return self.fit(self.part[position][self.column])

"""Images that stay in their files: a folder a class, or a dataset of Hugging Face."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension, make_dataset

from wdro_train.data.base import ImageDataModule, ImageFiles, ImageSet, Order, class_numbers
from wdro_train.data.decoding import Fit, UnreadableImageError, open_image, reason
from wdro_train.utils.errors import UserError
from wdro_train.utils.optional_imports import optional

PARTS = ("train", "val", "test")


# What programs and file systems leave in folders; it is hidden, or hidden elsewhere.
_LEFT_BY_SYSTEMS = ("__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
_ENDINGS = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif", ".jp2")


def class_folders(folder: str | Path) -> list[str]:
    """Names of the classes of a folder of images, in the order of their numbers.

    A class is a folder in it. Hidden folders (`.ipynb_checkpoints`) and those that systems leave (`__MACOSX`) are none.

    Raises:
        UserError: There is no class, or the folder may not be read.
    """
    try:
        names = sorted(one.name for one in Path(folder).iterdir() if one.is_dir() and not _hidden(one.name))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); mend its permissions") from error
    if not names:
        raise UserError(f"{folder} holds no folders; put the images of each class into one of its own")
    return names


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _LEFT_BY_SYSTEMS


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
        found: dict[str, Path] = {}
        for name in PARTS:
            part = self.folders.get(name)
            if part is not None and (self.root / part).is_dir():
                found[name] = self.root / part
        if not found:
            raise UserError(
                f"data.root={self.root} has no folder {', '.join(filter(None, self.folders.values()))}; "
                "put one folder a class in train/"
            )
        classes = class_folders(next(iter(found.values())))
        for folder in found.values():
            odd = sorted({*class_folders(folder)} ^ {*classes})
            if odd:
                raise UserError(
                    f"{folder} has other classes: {', '.join(odd[:3])}; give every set the same class folders"
                )
        if len(classes) != self.num_classes:
            raise UserError(
                f"{next(iter(found.values()))} has {len(classes)} class folders, but data.num_classes="
                f"{self.num_classes}; labels follow the sorted folders, so all classes must be there"
            )
        sets = {name: self._set(folder, classes) for name, folder in found.items()}
        if self.subset is not None:
            if "test" not in found:
                raise UserError(f"data.subset={self.subset} chooses test images, but there is no test folder")
            sets["test"] = self._chosen(found["test"], sets["test"])
        return sets

    def _set(self, folder: Path, classes: list[str]) -> ImageFiles:
        def shown(path: str) -> bool:
            within = Path(path).relative_to(folder).parts
            return has_file_allowed_extension(path, _ENDINGS) and not any(map(_hidden, within))

        numbers = {name: number for number, name in enumerate(classes)}
        found = make_dataset(folder, numbers, is_valid_file=shown, allow_empty=True)
        labels = torch.as_tensor([label for _, label in found], dtype=torch.int64)
        empty = [classes[k] for k in (torch.bincount(labels, minlength=len(classes)) == 0).nonzero()]
        if empty:
            raise UserError(
                f"{folder} has no images in its class {', '.join(empty[:3])} (files that end in {' '.join(_ENDINGS)}); "
                "add some, or remove the class folder"
            )
        read = _Reader([path for path, _ in found], self.fit)
        return ImageFiles(read, labels, torch.arange(len(labels)), Order.BY_CLASS)

    def _chosen(self, folder: Path, whole: ImageFiles) -> ImageFiles:
        """The images of the list, in its order."""
        assert self.subset is not None
        if not self.subset.is_file():
            raise UserError(f"there is no list data.subset={self.subset}; write one class/name a line")
        read = whole.read
        assert isinstance(read, _Reader)
        rows = {"/".join(Path(path).parts[-2:]): row for row, path in enumerate(read.paths)}
        names = [line.strip() for line in self.subset.read_text(encoding="utf-8").splitlines() if line.strip()]
        absent = [name for name in names if name not in rows]
        if absent or not names:
            raise UserError(
                f"{len(absent)} of {len(names)} images of data.subset={self.subset} are not under {folder}"
                + (f", such as {absent[0]}" if absent else "")
            )
        return whole.take(torch.as_tensor([rows[name] for name in names]))._replace(order=Order.GIVEN)


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
            UserError: datasets is not installed, or finds no such dataset, split or column; or the labels are not
                class numbers.
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
        sets: dict[str, ImageFiles] = {}
        names: dict[str, list[str] | None] = {}
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
            labels = class_numbers(part[self.label][:], f"{self.dataset} {split}, column {self.label},")
            read = _Column(part, self.image, self.fit, f"{self.dataset} {split}")
            sets[name] = ImageFiles(read, labels, torch.arange(len(labels)), Order.BY_CLASS)
            names[name] = getattr(part.features[self.label], "names", None)
        self._check_classes(sets, names)
        return sets

    def _check_classes(self, sets: Mapping[str, ImageFiles], names: Mapping[str, list[str] | None]) -> None:
        """Refuse class numbers that mean something else in another split, or never occur."""
        for name, arrays in sets.items():
            classes = names[name]
            if classes != next(iter(names.values())):
                raise UserError(f"the splits of {self.dataset} name their classes differently; cast them to the same")
            if classes is not None and len(classes) != self.num_classes:
                raise UserError(
                    f"{self.dataset} has {len(classes)} classes, not data.num_classes={self.num_classes}; "
                    f"set data.num_classes={len(classes)}"
                )
            if classes is None and name == "train":
                never = sorted({*range(self.num_classes)} - {*arrays.labels.tolist()})
                if never:
                    raise UserError(
                        f"the {name} labels of {self.dataset} range over [{arrays.labels.min()}, "
                        f"{arrays.labels.max()}] and are never {', '.join(map(str, never[:3]))}; number the classes "
                        f"0..m-1 without gaps, or correct data.num_classes={self.num_classes}"
                    )


class _Reader:
    """Decodes files; plain data, so that loader processes can have it."""

    def __init__(self, paths: list[str], fit: Fit) -> None:
        self.paths, self.fit = paths, fit

    def __call__(self, position: int) -> Tensor:
        path = self.paths[position]
        return self.fit(open_image(path), path)

    def digest(self, positions: Tensor) -> str:
        """Of the files' bytes."""
        found = hashlib.sha256()
        for path in (self.paths[int(k)] for k in positions):
            try:
                found.update(hashlib.sha256(Path(path).read_bytes()).digest())
            except OSError as error:
                raise UnreadableImageError(f"{path} cannot be read ({reason(error)}); mend or remove it") from error
        return found.hexdigest()


class _Column:
    """Decodes images of a dataset."""

    def __init__(self, part: Any, column: str, fit: Fit, name: str) -> None:
        self.part, self.column, self.fit, self.name = part, column, fit, name

    def digest(self, positions: Tensor) -> str:
        """Of what `datasets` itself tells versions of a dataset apart by, and of the positions."""
        return f"{self.part._fingerprint} {hashlib.sha256(positions.numpy().tobytes()).hexdigest()}"

    def __call__(self, position: int) -> Tensor:
        name = f"image {position} of {self.name}"
        try:
            image = self.part[position][self.column]
        except Exception as error:  # whatever the decoder raises on a damaged image
            raise UnreadableImageError(f"{name} cannot be read ({reason(error)}); mend or remove it") from error
        if not isinstance(image, Image.Image):
            raise UnreadableImageError(
                f"{name} is of type {type(image).__name__}, not an image; cast the column {self.column} to "
                "datasets.Image() or set data.image"
            )
        return self.fit(image, name)

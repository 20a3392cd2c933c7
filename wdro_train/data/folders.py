"""Images that stay in their files, in one folder for each class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension, make_dataset

from wdro_train.data.base import ImageDataModule
from wdro_train.data.decoding import Fit, UnreadableImageError, open_image, reason
from wdro_train.data.image_sets import ImageFiles, ImageSet
from wdro_train.data.order import Order
from wdro_train.utils.errors import UserError

_PARTS = ("train", "val", "test")
# Folders that archive programs and file systems leave behind (macOS, Python, Synology, ext4, Windows); no class of
# images, though their names do not begin with a dot.
_LEFT_BY_SYSTEMS = ("__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
# Those of torchvision, and those of further formats that Pillow reads.
_ENDINGS = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif", ".jp2")


def class_folders(folder: str | Path) -> list[str]:
    """Names of the classes of a folder of images, in the order of their numbers 0..m-1, which is the alphabet's.

    Every folder in it is a class, except hidden ones (`.ipynb_checkpoints`) and those that archive programs and file
    systems leave behind (`__MACOSX`).

    Args:
        folder: Holds one folder for each class.

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
    """Images in files: `root` has a folder for each set, and that has a folder for each class.

    A set whose folder is null or not there is split off the training set. Without a training folder a network can still
    be judged on the others. Images are decoded when they are needed, whatever their format and size; see `Fit`.

    Args:
        root: The folder that holds those of the sets.
        folders: The names of the folders of `train`, `val` and `test` in it.
        resize: See `Fit`.
        subset: A file that lists the test images to use, one `class/name` on each line; null for all.
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
        """The sets whose folders exist, of `train`, `val` and `test`, with the classes of the first of them.

        Raises:
            UserError: No folder, no images in it, or other classes than in the first.
        """
        found: dict[str, Path] = {}
        for name in _PARTS:
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
        self.class_names = classes
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


class _Reader:
    """Decodes the file at a position; it holds plain data alone, so that loader processes can have a copy.

    The image that was asked for first, by the check of the set's shape, is kept until it is asked for again, so that
    who goes over the set once decodes each file once.
    """

    def __init__(self, paths: list[str], fit: Fit) -> None:
        self.paths, self.fit = paths, fit
        self._asked_before = False
        self._kept: dict[int, Tensor] = {}

    def __call__(self, position: int) -> Tensor:
        if position in self._kept:
            return self._kept.pop(position)
        path = self.paths[position]
        pixels = self.fit(open_image(path), path)
        if not self._asked_before:
            self._asked_before = True
            self._kept[position] = pixels
        return pixels

    def digest(self, positions: Tensor) -> str:
        """A digest of the files' bytes; see `DigestedSource`."""
        found = hashlib.sha256()
        for path in (self.paths[int(k)] for k in positions):
            try:
                found.update(hashlib.sha256(Path(path).read_bytes()).digest())
            except OSError as error:
                raise UnreadableImageError(f"{path} cannot be read ({reason(error)}); mend or remove it") from error
        return found.hexdigest()

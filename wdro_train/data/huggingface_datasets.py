"""Images of a dataset of Hugging Face `datasets`, decoded when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wdro_train.data.base import ImageDataModule
from wdro_train.data.checks import class_numbers
from wdro_train.data.decoding import Fit, UnreadableImageError, reason
from wdro_train.data.image_sets import ImageFiles, ImageSet
from wdro_train.data.order import Order
from wdro_train.utils.errors import UserError
from wdro_train.utils.optional_imports import optional


class HuggingFaceDataModule(ImageDataModule):
    """Images of a dataset that the library `datasets` loads, decoded when they are needed.

    Args:
        name: Its name on the hub, or a local folder: one that `load_dataset` reads, or one that `save_to_disk` wrote.
        image: The column of the images.
        label: The column of the labels, which are class numbers.
        splits: The names that `train`, `val` and `test` have in it; a set without a name is split off the training set.
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
        self.class_names = next(iter(names.values()), None)
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


class _Column:
    """Decodes the image at a position of one split."""

    def __init__(self, part: Any, column: str, fit: Fit, name: str) -> None:
        self.part, self.column, self.fit, self.name = part, column, fit, name

    def digest(self, positions: Tensor) -> str:
        """A digest of the fingerprint by which `datasets` tells versions of a dataset apart, and of the positions."""
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

"""Images that are decoded once, whatever is run on them: their pixels lie in files that are mapped into memory.

A set whose images stay in their files decodes them anew each time it is asked. Whoever needs them many times has them
decoded once into a folder, in parts of a few images, by as many processes as there are, and reads the parts from there:
what is read often stays in memory that the machine has to spare, and a set of any size needs little of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wdro_train.data.image_sets import ImageFiles, ImageSet
from wdro_train.data.order import Order
from wdro_train.utils.files import cannot_write

IMAGES_IN_A_PART = 64  # 10 MB of colour images of 224 pixels a side in 8 bits, so that some parts at once are little


class DecodedImages(NamedTuple):
    """A set whose pixels lie in a folder, in parts of `IMAGES_IN_A_PART` images; see `decode`.

    Attributes:
        folder: Holds the parts.
        labels: Shape [N].
        positions: Where the images stand in the parts, shape [N].
        order: In which order they stand in this set.
    """

    folder: Path
    labels: Tensor
    positions: Tensor
    order: Order = Order.GIVEN

    def batch(self, rows: Tensor) -> Tensor:
        """Images in [0, 1], shape [len(rows), C, H, W], bit for bit those of the set that was decoded."""
        wanted = self.positions[rows]
        parts = wanted // IMAGES_IN_A_PART
        places, images = [], []
        for part in torch.unique(parts).tolist():
            places.append((parts == part).nonzero().squeeze(1))
            pixels = np.load(_file(self.folder, part), mmap_mode="r")
            found = torch.from_numpy(pixels[(wanted[places[-1]] % IMAGES_IN_A_PART).numpy()])
            images.append(found if found.is_floating_point() else found.float() / 255)
        return torch.cat(images)[torch.cat(places).argsort()]

    def take(self, rows: Tensor) -> DecodedImages:
        """The set of some of the images."""
        return self._replace(labels=self.labels[rows], positions=self.positions[rows])


def parts_of(arrays: ImageSet) -> range:
    """The numbers of the parts that a set is decoded in."""
    return range(-(-len(arrays.labels) // IMAGES_IN_A_PART))


def decode(
    arrays: ImageSet,
    folder: Path,
    parts: Sequence[int],
    *,
    workers: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Decode some parts of a set into a folder.

    Args:
        arrays: The set.
        folder: Gets one file a part.
        parts: Their numbers, out of `parts_of`.
        workers: Number of processes that decode for this one.
        progress: Called with the number of parts that are done.

    Raises:
        UserError: An image that cannot be read, or the folder cannot be written to.
    """
    loader = DataLoader(_Parts(arrays, parts), batch_size=None, num_workers=workers, collate_fn=_as_is)
    for done, (part, pixels) in enumerate(loader, 1):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            np.save(_file(folder, part), pixels, allow_pickle=False)
        except OSError as error:
            raise cannot_write(folder, error, "store") from error
        progress(done)


def decoded(arrays: ImageSet, folder: Path) -> DecodedImages:
    """The set whose parts are in a folder, or those of them that are used.

    Args:
        arrays: The set that was decoded.
        folder: As given to `decode`.
    """
    order = arrays.order if isinstance(arrays, ImageFiles) else Order.GIVEN
    return DecodedImages(folder, arrays.labels, torch.arange(len(arrays.labels)), order)


class _Parts(Dataset[tuple[int, NDArray[Any]]]):
    """Some parts of a set, decoded when they are asked for."""

    def __init__(self, arrays: ImageSet, parts: Sequence[int]) -> None:
        self.arrays, self.parts = arrays, parts

    def __len__(self) -> int:
        """Number of parts."""
        return len(self.parts)

    def __getitem__(self, index: int) -> tuple[int, NDArray[Any]]:
        """The number of a part, and its pixels."""
        first = self.parts[index] * IMAGES_IN_A_PART
        rows = torch.arange(first, min(first + IMAGES_IN_A_PART, len(self.arrays.labels)))
        return self.parts[index], _pixels(self.arrays, rows).numpy()


def _pixels(arrays: ImageSet, rows: Tensor) -> Tensor:
    """Pixels of some images: as they are stored where all of them have 8 bits, else as floating point in [0, 1]."""
    if not isinstance(arrays, ImageFiles):
        found = arrays.batch(rows)
        return found.float() if found.dtype == torch.bfloat16 else found  # which NumPy does not know
    images = [arrays.read(int(k)) for k in arrays.positions[rows]]
    if all(image.dtype == torch.uint8 for image in images):
        return torch.stack(images)
    return torch.stack([image if image.is_floating_point() else image.float() / 255 for image in images])


def _file(folder: Path, part: int) -> Path:
    return folder / f"{part:06d}.npy"


def _as_is(part: Any) -> Any:
    """Without the conversion to tensors that a loader makes by default."""
    return part

"""Whole batches at once, varied by random transforms that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from wdro_train.data.image_sets import ImageSet

Batch = tuple[Tensor, Tensor]
"""Images in [0, 1], shape [B, C, H, W], and labels, shape [B], int64."""

Visit = tuple[int, int]
"""Epoch, and index of the image that is served in it."""

Augmentation = Callable[[Tensor], Tensor]
"""A random transform of one image, shape [C, H, W]."""


class ImageBatches(Dataset[Batch]):
    """The images of a set, served as whole batches: one index operation instead of one Python call an image.

    Args:
        arrays: The set.
        augment: Random transforms of one image, applied in this order; what they return is clamped to [0, 1].
        seed: With epoch and index it decides what the transforms do to an image, so that this is the same in a resumed
            run and on any number of ranks and loader processes.
    """

    def __init__(self, arrays: ImageSet, augment: Sequence[Augmentation] = (), seed: int = 0) -> None:
        self.arrays, self.augment, self.seed = arrays, augment, seed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.arrays.labels)

    def __getitem__(self, index: int | Visit) -> Batch:
        """One image in [0, 1] and its label."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int | Visit]) -> Batch:
        """A batch of images in [0, 1] and their labels; an index without epoch counts as of epoch 0."""
        visits = [index if isinstance(index, tuple) else (0, index) for index in indices]
        rows = torch.as_tensor([index for _, index in visits])
        images = self.arrays.batch(rows)
        if self.augment:
            images = torch.stack([self._vary(x, visit) for x, visit in zip(images, visits, strict=True)])
        return images, self.arrays.labels[rows]

    def _vary(self, image: Tensor, visit: Visit) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator alone: `torch.manual_seed` would also seed GPUs, on which nothing is forked, and takes
            # longer than the transforms.
            seed = int(np.random.SeedSequence([self.seed, *visit]).generate_state(1, np.uint32)[0])
            torch.default_generator.manual_seed(seed)
            for transform in self.augment:
                image = transform(image)
        return image.clamp(0, 1)


class VisitSampler(DistributedSampler[Batch]):
    """Yields (epoch, index) instead of the index alone.

    Loader processes that live for several epochs have no other way to learn which one they serve.
    """

    def __iter__(self) -> Iterator[Visit]:  # type: ignore[override]
        """In the order of this epoch."""
        return ((self.epoch, index) for index in super().__iter__())  # type: ignore[misc]

"""What every data module does: load, check, split, and deal out whole batches in a reproducible order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import lightning as L
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from wdro_train.errors import UserError

Batch = tuple[Tensor, Tensor]
Visit = tuple[int, int]  # epoch, index of the image
Augmentation = Callable[[Tensor], Tensor]
# `DistributedSampler` shuffles by seed + epoch: neighbouring seeds must not give shifted copies of one another.
_SEED_STRIDE = 10_007


class ImageSet(Protocol):
    """Images with labels, in memory or not."""

    @property
    def labels(self) -> Tensor:
        """Shape [N], int64."""
        ...

    def batch(self, rows: Tensor) -> Tensor:
        """Images in [0, 1], shape [len(rows), C, H, W]."""
        ...

    def take(self, rows: Tensor) -> ImageSet:
        """The set of some of the images."""
        ...


class ImageArrays(NamedTuple):
    """A set of images in memory: integers [N, C, H, W] in 0..scale, labels [N]."""

    images: Tensor
    labels: Tensor
    scale: float = 255.0

    def batch(self, rows: Tensor) -> Tensor:
        """Images in [0, 1], shape [len(rows), C, H, W]."""
        return self.images[rows].float() / self.scale

    def take(self, rows: Tensor) -> ImageArrays:
        """The set of some of the images."""
        return ImageArrays(self.images[rows], self.labels[rows], self.scale)


class ImageFiles(NamedTuple):
    """A set of images that are decoded when they are needed.

    Attributes:
        read: Takes a position in the source, returns an image of integers in 0..255, [C, H, W].
        labels: Shape [N].
        positions: Where the images stand in the source, shape [N].
    """

    read: Callable[[int], Tensor]
    labels: Tensor
    positions: Tensor

    def batch(self, rows: Tensor) -> Tensor:
        """Images in [0, 1], shape [len(rows), C, H, W]."""
        return torch.stack([self.read(int(k)) for k in self.positions[rows]]).float() / 255

    def take(self, rows: Tensor) -> ImageFiles:
        """The set of some of the images."""
        return ImageFiles(self.read, self.labels[rows], self.positions[rows])


class ImageBatches(Dataset[Batch]):
    """Serves whole batches at once: one index operation instead of one Python call an image.

    Args:
        arrays: The set.
        augment: Random transforms of one image, in this order; their results are clamped to [0, 1].
        seed: With epoch and image, decides what they do: the same in a resumed run and on any number of ranks.
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
        """A batch of images in [0, 1] and their labels."""
        visits = [index if isinstance(index, tuple) else (0, index) for index in indices]
        rows = torch.as_tensor([index for _, index in visits])
        images = self.arrays.batch(rows)
        if self.augment:
            images = torch.stack([self._vary(x, visit) for x, visit in zip(images, visits, strict=True)])
        return images, self.arrays.labels[rows]

    def _vary(self, image: Tensor, visit: Visit) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([self.seed, *visit]).generate_state(1, np.uint32)[0]))
            for transform in self.augment:
                image = transform(image)
        return image.clamp(0, 1)


class VisitSampler(DistributedSampler[Batch]):
    """Yields (epoch, index): workers that live for several epochs learn from it which one it is."""

    def __iter__(self) -> Iterator[Visit]:  # type: ignore[override]
        """In the order of this epoch."""
        return ((self.epoch, index) for index in super().__iter__())  # type: ignore[misc]


class ImageDataModule(L.LightningDataModule):
    """Three disjoint sets: validation is split off the training set, stratified and seeded.

    The order of epoch e depends on `seed` and e alone, so a resumed run sees the batches an uninterrupted one
    would have seen, and any number of ranks sees the same global batches.

    Args:
        shape: (C, H, W) of the images.
        num_classes: Number of classes.
        mean: Channel means, for the model's normalisation.
        std: Channel standard deviations.
        delta: Sensible default radius for each ground norm (`linf`, `l2`), for the attack.
        batch_size: Images of one optimisation step over all ranks.
        eval_batch_size: Images of one validation or test batch over all ranks.
        val_fraction: Share of the training set that is kept for validation, in (0, 1).
        split_seed: Seeds the split; not the training seed, so that runs are comparable.
        seed: Seeds the order of the training images.
        num_workers: Loader processes a rank.
        augment: Named random transforms of the training images, before any attack; None leaves one out.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        delta: Mapping[str, float],
        batch_size: int = 128,
        eval_batch_size: int = 512,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        seed: int = 0,
        num_workers: int = 0,
        augment: Mapping[str, Augmentation | None] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction={val_fraction} leaves a set empty; choose a share in (0, 1)")
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise UserError(f"data.{name}={size} holds no image; choose at least 1")
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.mean, self.std, self.delta = list(mean), list(std), dict(delta)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.split_seed, self.seed = val_fraction, split_seed, seed
        self.num_workers = num_workers
        self.augment = [transform for transform in (augment or {}).values() if transform is not None]
        self._sets: dict[str, ImageSet] = {}

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet] | Mapping[str, ImageSet]:
        """The training set (validation still inside) and the test set; or the sets there are, by name."""

    def setup(self, stage: str | None = None) -> None:
        """Load once, check, split validation (and test, where there is none) off the training set.

        Raises:
            UserError: Images of another shape than configured, labels out of range, or sets too small to split.
        """
        if self._sets:
            return
        loaded = self.load()
        sets = dict(loaded) if isinstance(loaded, Mapping) else dict(zip(("train", "test"), loaded, strict=True))
        for name, arrays in sets.items():
            self._check("training" if name == "train" else name, arrays)
        if "train" in sets:
            for name in ("test", "val"):
                if name not in sets:
                    sets["train"], sets[name] = self._split(sets["train"])
        self._sets = sets

    def _split(self, arrays: ImageSet) -> tuple[ImageSet, ImageSet]:
        try:
            kept, held_out = train_test_split(
                range(len(arrays.labels)),
                test_size=self.val_fraction,
                random_state=self.split_seed,
                stratify=arrays.labels.numpy(),
            )
        except ValueError as error:
            raise UserError(
                f"data.val_fraction={self.val_fraction} cannot split {len(arrays.labels)} training images by class "
                f"({error}); choose another share"
            ) from error
        return arrays.take(torch.as_tensor(kept)), arrays.take(torch.as_tensor(held_out))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled anew each epoch, in full batches: the few images left over are others each time."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """In fixed order."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """In fixed order."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def arrays(self, name: str) -> ImageSet:
        """The images and labels of `train`, `val` or `test`.

        Raises:
            UserError: This data has no such set.
        """
        self.setup()
        if name not in self._sets:
            raise UserError(f"these images have no {name} set, only {', '.join(self._sets)}; add one, or its folder")
        return self._sets[name]

    def _loader(self, name: str, batch_size: int, shuffle: bool) -> DataLoader[Batch]:
        world = self.trainer.world_size if self.trainer is not None else 1
        rank = self.trainer.global_rank if self.trainer is not None else 0
        if batch_size % world:
            raise UserError(
                f"a batch of {batch_size} images does not divide over {world} ranks; change data.batch_size"
            )
        # Only the training set is shuffled, and only it is augmented.
        dataset = ImageBatches(self.arrays(name), self.augment if shuffle else (), self.seed)
        sampler: DistributedSampler[Batch] = (VisitSampler if dataset.augment else DistributedSampler)(
            dataset, num_replicas=world, rank=rank, shuffle=shuffle, seed=self.seed * _SEED_STRIDE
        )
        if self.trainer is not None:
            # Workers read ahead from now on. When a run is resumed, `current_epoch` still counts one epoch too few.
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return DataLoader(
            dataset,
            batch_size=batch_size // world,
            sampler=sampler,
            # The incomplete last batch is where ranks would be filled up with repeated images.
            drop_last=shuffle and len(dataset) >= batch_size,
            collate_fn=_as_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _check(self, name: str, arrays: ImageSet) -> None:
        found = tuple(arrays.batch(torch.arange(1)).shape[1:])
        if found != self.shape:
            raise UserError(f"the {name} images have shape {found}, not data.shape={self.shape}")
        if isinstance(arrays, ImageArrays) and len(arrays.images) != len(arrays.labels):
            raise UserError(
                f"there are {len(arrays.images)} {name} images but {len(arrays.labels)} labels; give one label an image"
            )
        low, high = int(arrays.labels.min()), int(arrays.labels.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(
                f"the {name} labels range over [{low}, {high}], outside 0..{self.num_classes - 1}; "
                "correct the labels or data.num_classes"
            )


def _as_is(batch: Any) -> Any:
    """The dataset already returns batches."""
    return batch

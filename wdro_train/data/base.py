"""What every data module does: load, check, split, and deal out whole batches in a reproducible order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from wdro_train.errors import UserError

Batch = tuple[Tensor, Tensor]
# `DistributedSampler` shuffles by seed + epoch: neighbouring seeds must not give shifted copies of one another.
_SEED_STRIDE = 10_007


class ImageArrays(NamedTuple):
    """A set of images in memory: integers [N, C, H, W] in 0..scale, labels [N]."""

    images: Tensor
    labels: Tensor
    scale: float = 255.0


class ImageBatches(Dataset[Batch]):
    """Serves whole batches at once: one index operation instead of one Python call an image."""

    def __init__(self, arrays: ImageArrays) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        """Number of images."""
        return len(self.arrays.labels)

    def __getitem__(self, index: int) -> Batch:
        """One image in [0, 1] and its label."""
        return self.arrays.images[index].float() / self.arrays.scale, self.arrays.labels[index]

    def __getitems__(self, indices: list[int]) -> Batch:
        """A batch of images in [0, 1] and their labels."""
        rows = torch.as_tensor(indices)
        return self.arrays.images[rows].float() / self.arrays.scale, self.arrays.labels[rows]


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
        self._sets: dict[str, ImageArrays] = {}

    @abstractmethod
    def load(self) -> tuple[ImageArrays, ImageArrays]:
        """The training set (validation still inside) and the test set."""

    def setup(self, stage: str | None = None) -> None:
        """Load once, check, split.

        Raises:
            UserError: Images of another shape than configured, labels out of range, or sets too small to split.
        """
        if self._sets:
            return
        train, test = self.load()
        for name, arrays in (("training", train), ("test", test)):
            self._check(name, arrays)
        try:
            kept, held_out = train_test_split(
                range(len(train.labels)),
                test_size=self.val_fraction,
                random_state=self.split_seed,
                stratify=train.labels.numpy(),
            )
        except ValueError as error:
            raise UserError(
                f"data.val_fraction={self.val_fraction} cannot split {len(train.labels)} training images by class "
                f"({error}); choose another share"
            ) from error
        self._sets = {
            "train": _take(train, torch.as_tensor(kept)),
            "val": _take(train, torch.as_tensor(held_out)),
            "test": test,
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled anew each epoch, in full batches: the few images left over are others each time."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """In fixed order."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """In fixed order."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def arrays(self, name: str) -> ImageArrays:
        """The images and labels of `train`, `val` or `test`."""
        self.setup()
        return self._sets[name]

    def _loader(self, name: str, batch_size: int, shuffle: bool) -> DataLoader[Batch]:
        world = self.trainer.world_size if self.trainer is not None else 1
        rank = self.trainer.global_rank if self.trainer is not None else 0
        if batch_size % world:
            raise UserError(
                f"a batch of {batch_size} images does not divide over {world} ranks; change data.batch_size"
            )
        dataset = ImageBatches(self.arrays(name))
        sampler: DistributedSampler[Batch] = DistributedSampler(
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

    def _check(self, name: str, arrays: ImageArrays) -> None:
        found = tuple(arrays.images.shape[1:])
        if found != self.shape:
            raise UserError(f"the {name} images have shape {found}, not data.shape={self.shape}")
        if len(arrays.images) != len(arrays.labels):
            raise UserError(
                f"there are {len(arrays.images)} {name} images but {len(arrays.labels)} labels; give one label an image"
            )
        low, high = int(arrays.labels.min()), int(arrays.labels.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(
                f"the {name} labels range over [{low}, {high}], outside 0..{self.num_classes - 1}; "
                "correct the labels or data.num_classes"
            )


def _take(arrays: ImageArrays, rows: Tensor) -> ImageArrays:
    return ImageArrays(arrays.images[rows], arrays.labels[rows], arrays.scale)


def _as_is(batch: Any) -> Any:
    """The dataset already returns batches."""
    return batch

"""What every data module does: load, check, split, and deal out whole batches in an order that can be repeated."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, DistributedSampler

from wdro_train.data.batches import Augmentation, Batch, ImageBatches, VisitSampler
from wdro_train.data.checks import checked_set
from wdro_train.data.image_sets import ImageFiles, ImageSet, KeptInMemory
from wdro_train.utils.errors import UserError

# `DistributedSampler` shuffles by seed + epoch. With a stride that is larger than any number of epochs (and a prime),
# neighbouring seeds do not give copies of one another that are shifted by an epoch.
_SEED_STRIDE = 10_007


class ImageDataModule(L.LightningDataModule):
    """Labelled images in three disjoint sets, the same for every run that is to be compared.

    A subclass says in `load` where the images come from. What the source has no validation (or test) set for is split
    off its training set, stratified by class and seeded.

    The order of epoch e depends on `seed` and e alone, so a resumed run sees the batches an uninterrupted one
    would have seen, and any number of ranks sees the same global batches.

    Images that stay in their files are stored class by class. They are served in an order that is drawn once and
    balanced by class, so that the first k of them are a fair sample for every k. Images in memory are served as they
    come.

    Args:
        shape: (C, H, W) of the images.
        num_classes: Number of classes.
        mean: Channel means, for the normalisation in the model.
        std: Channel standard deviations, for the same.
        delta: The radius that is usual on these images, for each ground norm (`linf`, `l2`); an attack without a
            radius of its own takes it.
        batch_size: Images of one optimisation step over all ranks.
        eval_batch_size: Images of one validation or test batch over all ranks.
        val_fraction: Share of the training set that is kept for validation, in (0, 1).
        split_seed: Seeds the split; not the training seed, so that runs are comparable.
        seed: Seeds the order of the training images.
        num_workers: Number of loader processes of every rank.
        augment: Named random transforms of the training images, before any attack; None leaves one out.
        keep_decoded: Training and validation images that lie in files stay in memory once they have been decoded, in
            each loader process; the same images either way.

    Attributes:
        class_names: What the source calls its classes, in the order of their numbers; None until it has been loaded,
            and where it has no names.
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
        keep_decoded: bool = False,
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
        self.keep_decoded = keep_decoded
        self.class_names: list[str] | None = None
        self._sets: dict[str, ImageSet] = {}

    @abstractmethod
    def load(self) -> tuple[ImageSet, ImageSet] | Mapping[str, ImageSet]:
        """What the source has.

        Returns:
            The training set (validation still inside) and the test set; or the sets there are, under the names
            `train`, `val` and `test`.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load once, check, and split off the training set what the source has no set for.

        Args:
            stage: As Lightning calls it; all sets are made for every stage.

        Raises:
            UserError: Images of another shape than configured, labels out of range, or sets too small to split.
        """
        if self._sets:
            return
        loaded = self.load()
        sets = dict(loaded) if isinstance(loaded, Mapping) else dict(zip(("train", "test"), loaded, strict=True))
        for name, arrays in sets.items():
            sets[name] = checked_set(arrays, "training" if name == "train" else name, self.shape, self.num_classes)
        if "train" in sets:
            for name in ("test", "val"):
                if name not in sets:
                    sets["train"], sets[name] = self._split(sets["train"])
        # After the split, which depends on the order that it finds.
        sets = {name: a.drawn() if isinstance(a, ImageFiles) else a for name, a in sets.items()}
        if self.keep_decoded:  # an evaluation decodes its images once anyhow, and reads them from files
            for name in {"train", "val"} & sets.keys():
                arrays = sets[name]
                sets[name] = (
                    arrays._replace(read=KeptInMemory(arrays.read)) if isinstance(arrays, ImageFiles) else arrays
                )
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
        """The training set, shuffled anew each epoch, in full batches: the images left over are others each time."""
        return self._loader("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation set in fixed order."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test set in fixed order."""
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


def _as_is(batch: Any) -> Any:
    """The dataset already returns batches."""
    return batch

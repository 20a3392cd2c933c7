"""What every data module does: load, check, split, and deal out whole batches in a reproducible order."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from wdro_train.utils.errors import UserError

Batch = tuple[Tensor, Tensor]
Visit = tuple[int, int]  # epoch, index of the image
Augmentation = Callable[[Tensor], Tensor]
# `DistributedSampler` shuffles by seed + epoch: neighbouring seeds must not give shifted copies of one another.
_SEED_STRIDE = 10_007
_TOLERANCE = 1e-6
_DECODED_AT_ONCE = 256


# Seeds the order in which sets sorted by class are served: always the same, so that results are comparable.
_ORDER_SEED = 0


class Order(Enum):
    """In which order the images of a set stand."""

    GIVEN = "that of the source, or of a list"
    BY_CLASS = "class by class"
    DRAWN = "drawn at random, every beginning balanced by class"


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
        read: Takes a position in the source, returns an image [C, H, W] of integers in 0..255, or of floating-point
            pixels in [0, 1].
        labels: Shape [N].
        positions: Where the images stand in the source, shape [N].
        order: In which order they stand here.
    """

    read: Callable[[int], Tensor]
    labels: Tensor
    positions: Tensor
    order: Order = Order.GIVEN

    def batch(self, rows: Tensor) -> Tensor:
        """Images in [0, 1], shape [len(rows), C, H, W]."""
        images = (self.read(int(k)) for k in self.positions[rows])
        return torch.stack([x if x.is_floating_point() else x.float() / 255 for x in images])

    def take(self, rows: Tensor) -> ImageFiles:
        """The set of some of the images."""
        return self._replace(labels=self.labels[rows], positions=self.positions[rows])

    def drawn(self) -> ImageFiles:
        """The set in the order in which it is served: a set sorted by class would begin with one class only."""
        if self.order is not Order.BY_CLASS:
            return self
        return self.take(balanced_order(self.labels))._replace(order=Order.DRAWN)


def balanced_order(labels: Tensor, seed: int = _ORDER_SEED) -> Tensor:
    """A random order whose first so many rows hold the classes in the proportions of the whole, whatever their number.

    The rows of a class are shuffled, and the k-th of its n rows (from 0) gets a random place in [k/n, (k + 1)/n).

    Args:
        labels: Shape [N], integers >= 0.
        seed: Decides the order.

    Returns:
        A permutation of 0..N-1.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    sizes = np.unique(labels.numpy(), return_counts=True)[1]
    rank = np.concatenate([np.arange(size) for size in sizes])
    place = (rank + rng.random(len(rank))) / np.repeat(sizes, sizes)
    return torch.as_tensor(by_class[np.argsort(place, kind="stable")])


def describe_sample(arrays: ImageSet, limit: int | None) -> str:
    """Which images of a set its first so many are, in words for a report.

    Args:
        arrays: What is left of the set.
        limit: How many were asked for; None for all.
    """
    if limit is None or len(arrays.labels) < limit:
        return "all"
    if getattr(arrays, "order", Order.GIVEN) is Order.DRAWN:
        return f"drawn with seed {_ORDER_SEED}, balanced by class"
    return "the first"


@runtime_checkable
class DigestedSource(Protocol):
    """A source of images that can tell whether they have been replaced, without decoding them."""

    def digest(self, positions: Tensor) -> str:
        """A digest of the images at these positions, as they are stored.

        Args:
            positions: Shape [N].
        """
        ...


def content_digest(arrays: ImageSet) -> str:
    """A digest of the images and labels of a set: a resumed run asks whether they are still the same.

    Args:
        arrays: The set. Images in files are not decoded, unless their source has no digest of its own.
    """
    found = hashlib.sha256(arrays.labels.numpy().tobytes())
    if isinstance(arrays, ImageArrays):
        found.update(f"{arrays.images.dtype} {arrays.scale}".encode())
        found.update(arrays.images.contiguous().view(torch.uint8).numpy().data)
    elif isinstance(arrays, ImageFiles) and isinstance(arrays.read, DigestedSource):
        found.update(arrays.read.digest(arrays.positions).encode())
    else:
        for rows in torch.split(torch.arange(len(arrays.labels)), _DECODED_AT_ONCE):
            found.update(arrays.batch(rows).contiguous().numpy().data)
    return found.hexdigest()[:16]


def class_numbers(labels: Any, name: str) -> Tensor:
    """Labels as int64, shape [N], from whole numbers of any type.

    Args:
        labels: A tensor, an array or a list.
        name: Of the set, for the message.

    Raises:
        UserError: Strings, fractions, missing values, or more than one label an image.
    """
    values = np.asarray(labels)
    if values.ndim != 1 or values.dtype.kind not in "biu":
        kind = str(values.dtype) if values.ndim == 1 else f"{values.dtype} of shape {list(values.shape)}"
        raise UserError(f"the {name} labels are {kind}, not class numbers; give one whole number an image")
    return torch.as_tensor(values.astype(np.int64))


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

    Images in files, which are sorted by class in their folders, are served in an order that is drawn once and balanced
    by class, so that the first so many of them are a fair sample; images in memory are served as they come.

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
            sets[name] = self._checked("training" if name == "train" else name, arrays)
        if "train" in sets:
            for name in ("test", "val"):
                if name not in sets:
                    sets["train"], sets[name] = self._split(sets["train"])
        # After the split, which depends on the order that it finds.
        self._sets = {name: a.drawn() if isinstance(a, ImageFiles) else a for name, a in sets.items()}

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

    def _checked(self, name: str, arrays: ImageSet) -> ImageSet:
        """The set, its labels as int64."""
        if isinstance(arrays, ImageArrays):
            arrays = arrays._replace(images=torch.as_tensor(arrays.images))
            if len(arrays.images) != len(arrays.labels):
                raise UserError(
                    f"there are {len(arrays.images)} {name} images but {len(arrays.labels)} labels; give one label "
                    "an image"
                )
        if isinstance(arrays, ImageArrays | ImageFiles):
            arrays = arrays._replace(labels=class_numbers(arrays.labels, name))
        elif arrays.labels.dtype != torch.int64:
            raise UserError(f"the {name} labels are {arrays.labels.dtype}; make them int64 in {type(arrays).__name__}")
        if len(arrays.labels) == 0:
            raise UserError(f"the {name} set has no images; add some, or leave the set out")
        found = tuple(arrays.batch(torch.arange(1)).shape[1:])
        if found != self.shape:
            raise UserError(f"the {name} images have shape {found}, not data.shape={self.shape}")
        low, high = int(arrays.labels.min()), int(arrays.labels.max())
        if low < 0 or high >= self.num_classes:
            raise UserError(
                f"the {name} labels range over [{low}, {high}], outside 0..{self.num_classes - 1}; "
                "correct the labels or data.num_classes"
            )
        if isinstance(arrays, ImageArrays):
            _check_pixels(name, arrays)
        return arrays


def _check_pixels(name: str, arrays: ImageArrays) -> None:
    """Refuse pixels that `scale` does not bring to [0, 1]."""
    images = arrays.images
    # PyTorch lacks the extremes of some integers, and NumPy those of some floating-point types.
    pair = images.aminmax() if images.is_floating_point() else (images.numpy().min(), images.numpy().max())
    darkest, brightest = map(float, pair)
    if not (darkest >= 0 and brightest <= arrays.scale * (1 + _TOLERANCE)):
        raise UserError(
            f"the {name} images range over [{darkest:g}, {brightest:g}], outside [0, {arrays.scale:g}]; "
            "give ImageArrays their full scale"
        )
    if images.is_floating_point() and brightest <= 1 < arrays.scale:
        raise UserError(
            f"the {name} images are floating-point numbers in [0, 1] already, and would be divided by "
            f"{arrays.scale:g}; give ImageArrays(..., scale=1)"
        )


def _as_is(batch: Any) -> Any:
    """The dataset already returns batches."""
    return batch

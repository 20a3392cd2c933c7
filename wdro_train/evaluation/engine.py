"""Work on a whole dataset that does not fit into memory, spread over processes, and resumed where it was killed.

The engine streams the set batch by batch and keeps what each batch leaves: a few numbers an image. Batches are dealt
out over the ranks, and each rank writes what it finishes to a store that all of them read. So the result does not
depend on the number of ranks, and a run that was killed goes on from its last finished batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wdro_train.evaluation.array_batches import MovedBatches
from wdro_train.evaluation.describe import describe
from wdro_train.evaluation.digests import batch_digest, digest
from wdro_train.evaluation.passes import PASSES, PassLedger, counted
from wdro_train.evaluation.piece_store import Arrays, PieceStore, concatenate
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.float32_precision import full_float32

Batches = Iterable[tuple[Tensor, Tensor]]
Work = Callable[..., Arrays]


@dataclass(frozen=True)
class Stage:
    """One pass of work over a set, whose results are kept batch by batch.

    Attributes:
        name: For the progress bar and the store's folders.
        settings: Everything that the work depends on beside the network and its batch, such as the attack. Pieces are
            told apart by what these settings are made of (see `describe`).
        work: Takes the images [B, C, H, W], the labels [B] and a generator seeded for the batch; returns per-image
            arrays, whose last axis is B. Where there is a stage before, it takes the batch's `Place` as well.
        before: The stage whose pieces of the same batch the work reads, by `Engine.piece`; None for a stage that stands
            by itself.
    """

    name: str
    settings: Any
    work: Work
    before: Stage | None = None

    @cached_property
    def key(self) -> str:
        """The name of the stage's folder in the store."""
        return stage_key(self.name, self.settings)


def stage_key(name: str, settings: Any) -> str:
    """The folder of a stage in the store: its name, and a digest of its settings.

    Args:
        name: Of the stage.
        settings: See `Stage`.
    """
    return f"{name}-{digest(describe(settings))[:32]}"


class Mark(NamedTuple):
    """What tells a batch of the set apart from any other.

    Attributes:
        digest: Digest of the images and labels.
        size: Number of images.
    """

    digest: str
    size: int


class Place(NamedTuple):
    """Where a batch is.

    Attributes:
        number: Its number in the set.
        mark: What tells it apart.
    """

    number: int
    mark: Mark

    @classmethod
    def of(cls, number: int, x: Tensor, y: Tensor) -> Place:
        """The place of the batch of this number, images and labels."""
        return cls(number, Mark(batch_digest(x, y), len(y)))


@dataclass
class Engine:
    """Runs work over all batches of a set, once each.

    Attributes:
        model: Maps images in [0, 1] to logits.
        batches: Images [B, C, H, W] in [0, 1] with labels [B], in an order that does not change; iterated once a stage.
        store: Keeps the finished batches of every stage.
        device: The device of the model; batches are moved there.
        seed: Seeds the generator of each batch, together with the number of the batch.
        reducer: Gives rank and number of ranks.
        progress: Called with the name of a stage and the number of its batches that are done, 0 when it begins; and
            with their `total` where it is not that of the set.
        ledger: Gets the passes of every stage, whichever process did them, in this run or one that was killed.
        fast: The network whose gradients searches for flips follow (see `SearchArithmetic`); None for `model`.
    """

    model: nn.Module
    batches: Batches
    store: PieceStore
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    reducer: Reducer = field(default_factory=LocalReducer)
    progress: Callable[..., None] = lambda stage, done, total=None: None
    ledger: PassLedger = field(default_factory=PassLedger)
    fast: nn.Module | None = None
    _marks: list[Mark] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """The engine of other batches keeps those on the device."""
        self.moved = MovedBatches(self.device)

    @property
    def images_digest(self) -> str:
        """What tells the images and labels of the set, in their order and batches, apart from any others."""
        return digest([list(mark) for mark in (self._marks or self.survey())])

    def first(self, batches: int) -> Engine:
        """The same engine over the first so many batches."""
        return replace(self, batches=list(islice(self.batches, batches)))

    def run(self, stage: Stage, names: tuple[str, ...]) -> Arrays:
        """Do the work of a stage on every batch of this rank that is not in the store yet, and join all batches.

        Args:
            stage: What to do.
            names: Which of the stage's arrays are wanted.

        Returns:
            These arrays of the whole set, batch after batch along the last axis, the same on every rank.

        Raises:
            UserError: There are no batches, or they are not those of an earlier stage.
        """
        marks: list[Mark] = []
        self.progress(stage.name, 0)
        for index, (x, y) in enumerate(self.batches):
            marks.append(Mark(batch_digest(x, y), len(y)))
            mine = index % self.reducer.world_size == self.reducer.rank
            if mine and self.store.load(stage.key, index, marks[-1].digest) is None:
                self._do(stage, index, marks[-1], x, y)
            self.progress(stage.name, index + 1)
        self._same_set(marks)
        self.wait()
        return self._join(stage, marks, names)

    def piece(self, stage: Stage, place: Place, x: Tensor, y: Tensor, names: tuple[str, ...]) -> Arrays:
        """What a stage leaves of one batch: from the store, or made again if it is not there.

        Args:
            stage: What was done.
            place: Where the batch is.
            x: The images of the batch.
            y: Their labels.
            names: Which of the stage's arrays are wanted.
        """
        found = self.store.load(stage.key, place.number, place.mark.digest, names)
        return self._do(stage, place.number, place.mark, x, y) if found is None else found

    def survey(self) -> list[Mark]:
        """The mark of each batch of the set, from one pass over it.

        Raises:
            UserError: See `run`.
        """
        marks = [Mark(batch_digest(x, y), len(y)) for x, y in self.batches]
        self._same_set(marks)
        return marks

    def agree(self, flag: bool) -> bool:
        """Whether a flag is raised on any rank; every rank must call this, and waits for the others."""
        return bool(self.reducer.gather(torch.full((1,), float(flag), device=self.device)).any())

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.agree(False)

    def _do(self, stage: Stage, index: int, mark: Mark, x: Tensor, y: Tensor) -> Arrays:
        key = np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint32)
        generator = torch.Generator(self.device).manual_seed(int(key[0]))
        x, y = self.moved(mark.digest, x, y)
        place = () if stage.before is None else (Place(index, mark),)
        with full_float32():  # the same figures on every device; see `full_float32`
            arrays, passes = counted(self.model, lambda: stage.work(x, y, generator, *place))
        arrays = {**arrays, PASSES: passes}
        self.store.save(stage.key, index, mark.digest, arrays)
        return arrays

    def _join(self, stage: Stage, marks: list[Mark], names: tuple[str, ...]) -> Arrays:
        wanted = (*names, PASSES)
        found = [self.store.load(stage.key, index, mark.digest, wanted) for index, mark in enumerate(marks)]
        parts = {index: part for index, part in enumerate(found) if part is not None}
        if len(parts) < len(marks):  # a piece was damaged or removed after it had been found or written
            for index, (x, y) in enumerate(self.batches):
                if index not in parts:
                    parts[index] = self._do(stage, index, marks[index], x, y)
        joined = concatenate([parts[index] for index in range(len(marks))], wanted)
        self.ledger.add(joined.pop(PASSES))
        return joined

    def _same_set(self, marks: list[Mark]) -> None:
        """Numbers of one image meet in several stages, so all stages must see the same images in the same order."""
        if not marks:
            raise UserError("there are no batches, so there is nothing to judge; give at least one image")
        if self._marks is not None and marks != self._marks:
            raise UserError(
                f"the {len(marks)} batches are not those of the pass before; give images in a fixed order, unshuffled "
                "and without random augmentation, and do not change them meanwhile"
            )
        self._marks = marks

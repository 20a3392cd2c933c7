"""W-PGD on a whole set as one distribution, kept in the store so that it is not run again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wdro_train.attacks import WPGD
from wdro_train.evaluation.digests import digest
from wdro_train.evaluation.engine import Engine, Mark, stage_key
from wdro_train.evaluation.passes import PASSES, counted
from wdro_train.evaluation.streamed_pgd import streamed_pgd
from wdro_train.utils.errors import UserError
from wdro_train.utils.float32_precision import full_float32

_ARRAYS = ("distances", "mean_loss", PASSES)


@dataclass(frozen=True, eq=False)
class WholeSetPGD:
    """What W-PGD does to a whole set.

    Attributes:
        accuracy: Accuracy under the iterate of lowest accuracy.
        largest_mean_loss: Largest mean loss over the iterates: V(delta) from below.
        flips: Displacement norm of every image that is flipped there, inf for the others, shape [N], float64, in the
            order of the set.
    """

    accuracy: float
    largest_mean_loss: float
    flips: NDArray[np.float64]


def pgd_whole_set(
    engine: Engine, *, norm: float, loss: str, p: float, delta: float, steps: int, box: bool
) -> WholeSetPGD:
    """Run W-PGD from the clean images on the whole set, and keep its iterate of lowest accuracy, as the 2023 code does.

    Args:
        engine: The set and the network; displacements lie in memory-mapped files in the folder of its store.
        norm: Ground norm.
        loss: `ce`, `dlr` or `redlr`.
        p: Wasserstein order, > 1.
        delta: Radius.
        steps: Gradient steps.
        box: True goes along the free gradient and projects after clamping; False is the paper's order.

    Raises:
        UserError: The ranks do not see each other's files.
    """
    world, rank = engine.reducer.world_size, engine.reducer.rank
    attack = WPGD(p=p, norm=norm, delta=delta, loss=loss, steps=steps, box=box, random_start=False)
    name = f"pgd_{loss}_{p:g}_{delta:g}"
    stage = stage_key(name, {"attack": attack, "world": world})
    marks = engine.survey()
    whole = digest([mark.digest for mark in marks])
    engine.progress(name, 0, steps)
    for again in (True, False):
        parts = [engine.store.load(stage, share, whole, _ARRAYS) for share in range(world)]
        found = [part for part in parts if part is not None]
        # A rank may fail to read what another one reads; as all of them move the images together, they must agree.
        if not engine.agree(len(found) < world):
            break
        if not again:
            raise UserError(
                f"{engine.store.folder} does not show every process what the others wrote; choose a folder that all "
                "of them share with store=..."
            )
        work = partial(
            streamed_pgd,
            attack,
            engine.model,
            _Share(engine, {k: marks[k].digest for k in range(rank, len(marks), world)}),
            reducer=engine.reducer,
            device=engine.device,
            folder=engine.store.folder,
            progress=lambda done: engine.progress(name, done, steps),
        )
        with full_float32():
            result, passes = counted(engine.model, work)
        flips = np.where(result.robust, math.inf, result.distances)
        arrays = {"distances": flips, "mean_loss": np.full(1, result.max_mean_loss), PASSES: passes}
        engine.store.save(stage, rank, whole, arrays)
        engine.wait()
    engine.ledger.add(np.concatenate([part[PASSES] for part in found], axis=1))
    distances = np.concatenate([part["distances"] for part in found])[_places(marks, world)]
    return WholeSetPGD(float(np.isinf(distances).mean()), float(found[0]["mean_loss"][0]), distances)


class _Share:
    """One rank's batches on its device, as often as asked for."""

    def __init__(self, engine: Engine, digests: dict[int, str]) -> None:
        self.engine, self.digests = engine, digests

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        moved, digests = self.engine.moved, self.digests
        kept = moved.kept(list(digests.values()))
        if kept is not None:
            return iter(kept)
        return (moved(digests[k], *batch) for k, batch in enumerate(self.engine.batches) if k in digests)


def _places(marks: list[Mark], world: int) -> NDArray[np.int64]:
    """Where each image of the set stands when the ranks' shares are laid end to end, shape [N]."""
    starts = np.cumsum([0, *(mark.size for mark in marks)])
    order = [k for rank in range(world) for k in range(rank, len(marks), world)]
    positions = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in order])
    return np.argsort(positions, kind="stable")

"""The poster's quantities of one network on a grid: first-order values, W-PGD, ratios and their bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wdro_train.attacks import WPGD
from wdro_train.evaluation.engine import Batches, Engine, Mark, first_order_grid, stage_key
from wdro_train.evaluation.identity import digest
from wdro_train.evaluation.streamed_pgd import streamed_pgd
from wdro_train.metrics.functional import accuracy_ratio, first_order_value, lower_bounds
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError


def pgd_whole_set(
    engine: Engine, *, norm: float, loss: str, p: float, delta: float, steps: int, box: bool
) -> tuple[float, float, NDArray[np.float64]]:
    """W-PGD with all images as one distribution (the iterate of lowest accuracy, as in the 2023 protocol).

    Args:
        engine: The set and the network; displacements are kept in memory-mapped files in its store.
        norm: Ground norm.
        loss: `ce`, `dlr` or `redlr`.
        p: Wasserstein order, > 1.
        delta: Radius.
        steps: Gradient steps.
        box: Free gradient, projection after clamping.

    Returns:
        Accuracy, largest mean loss over the iterates (V(delta) from below), and the displacement of every image
        that was flipped (inf for the others), shape [N], in the order of the set.
    """
    world, rank = engine.reducer.world_size, engine.reducer.rank
    attack = WPGD(p=p, norm=norm, delta=delta, loss=loss, steps=steps, box=box)
    name = f"pgd_{loss}_{p:g}_{delta:g}"
    stage = stage_key(name, {"attack": attack, "world": world})
    marks = engine.survey()
    whole = digest([mark.digest for mark in marks])
    for again in (True, False):
        parts = [engine.store.load(stage, share, whole, ("distances", "mean_loss")) for share in range(world)]
        found = [part for part in parts if part is not None]
        # A rank may fail to read what another one reads; as all of them move the images together, they must agree.
        if not engine.agree(len(found) < world):
            break
        if not again:
            raise UserError(
                f"{engine.store.folder} does not show every process what the others wrote; choose a folder that all "
                "of them share with store=..."
            )
        result = streamed_pgd(
            attack,
            engine.model,
            _Share(engine.batches, rank, world),
            reducer=engine.reducer,
            device=engine.device,
            folder=engine.store.folder,
            progress=lambda done: engine.progress(name, done),
        )
        flips = np.where(result.robust, math.inf, result.distances)
        engine.store.save(stage, rank, whole, {"distances": flips, "mean_loss": np.full(1, result.max_mean_loss)})
        engine.wait()
    distances = np.concatenate([part["distances"] for part in found])[_places(marks, world)]
    return float(np.isinf(distances).mean()), float(found[0]["mean_loss"][0]), distances


def poster_rows(
    engine: Engine,
    *,
    norm: float,
    losses: list[str],
    orders: list[float],
    deltas: list[float],
    steps: int,
    box: bool,
    flips: list[NDArray[np.float64]],
) -> list[dict[str, Any]]:
    """One row a loss, order and radius; `with_worst_case` completes them.

    Args:
        engine: The set and the network.
        norm: Ground norm.
        losses: Of `ce`, `dlr`, `redlr`.
        orders: Wasserstein orders p > 1.
        deltas: Radii > 0.
        steps: Steps of W-PGD.
        box: See `WFGSM` and `WPGD`.
        flips: Gets the distances at which W-PGD flipped each image, one entry a row.

    Returns:
        Rows with the keys of `report.json`, `poster`.
    """
    rows = []
    for loss in losses:
        grid = first_order_grid(engine, norm=norm, loss=loss, orders=orders, deltas=deltas, box=box)
        for p in orders:
            highest = grid.v0  # balls are nested: what reached a smaller radius is inside the larger one
            for delta in sorted(deltas):
                pgd_acc, v_pgd, found = pgd_whole_set(
                    engine, norm=norm, loss=loss, p=p, delta=delta, steps=steps, box=box
                )
                lower = lower_bounds(grid.w0, grid.v0, grid.v_q[p, delta], delta, grid.upsilon[p])
                flips.append(found)
                highest = max(highest, v_pgd, grid.v_q[p, delta])
                rows.append(
                    {
                        "loss": loss,
                        "p": p,
                        "norm": norm,
                        "delta": delta,
                        "v0": grid.v0,
                        "w0": grid.w0,
                        "upsilon": grid.upsilon[p],
                        "v_first_order": first_order_value(grid.v0, delta, grid.upsilon[p]),
                        "v_q": grid.v_q[p, delta],
                        "v_pgd": highest,
                        "fgsm_acc": grid.fgsm_acc[p, delta],
                        "fgsm_spent": grid.spent[p, delta],
                        "pgd_acc": pgd_acc,
                        "ratio_pgd": accuracy_ratio(pgd_acc, grid.clean_acc),
                        "ratio_upper": accuracy_ratio(grid.fgsm_acc[p, delta], grid.clean_acc),
                        "ratio_lower_attack": lower.attack,
                        "ratio_lower_gradient": lower.gradient,
                        "ratio_lower": lower.minimum,
                    }
                )
    return rows


def with_worst_case(rows: list[dict[str, Any]], curve: RobustnessCurve) -> list[dict[str, Any]]:
    """The rows with A_delta and R = A_delta / A by the knapsack over all distances known.

    Args:
        rows: From `poster_rows`.
        curve: Pooled over all attacks, W-PGD's flips included.
    """
    done = []
    for row in rows:
        worst = curve.accuracy(row["delta"], row["p"])
        done.append(row | {"worst_acc": worst, "ratio": accuracy_ratio(worst, curve.clean_accuracy)})
    return done


class _Share:
    """One rank's batches, as often as asked for."""

    def __init__(self, batches: Batches, rank: int, world: int) -> None:
        self.batches, self.rank, self.world = batches, rank, world

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (batch for k, batch in enumerate(self.batches) if k % self.world == self.rank)


def _places(marks: list[Mark], world: int) -> NDArray[np.int64]:
    """Where each image of the set stands when the ranks' shares are laid end to end, shape [N]."""
    starts = np.cumsum([0, *(mark.size for mark in marks)])
    order = [k for rank in range(world) for k in range(rank, len(marks), world)]
    positions = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in order])
    return np.argsort(positions, kind="stable")

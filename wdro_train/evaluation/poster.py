"""The poster's quantities of one network on a grid: first-order values, W-PGD, ratios and their bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdro_train.attacks import WPGD
from wdro_train.evaluation.engine import Batches, Engine, first_order_grid
from wdro_train.evaluation.streamed_pgd import streamed_pgd
from wdro_train.metrics.functional import accuracy_ratio, first_order_value, lower_bounds
from wdro_train.robustness_curve import RobustnessCurve


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
    stage = f"pgd_{loss}_{norm:g}_{p:g}_{delta:g}_{steps}_{box}_of{world}"
    if not all(engine.store.has(stage, piece) for piece in range(world)):
        mine = _Share(engine.batches, rank, world)
        attack = WPGD(p=p, norm=norm, delta=delta, loss=loss, steps=steps, box=box)
        found = streamed_pgd(
            attack,
            engine.model,
            mine,
            reducer=engine.reducer,
            device=engine.device,
            folder=engine.store.folder,
            progress=lambda done: engine.progress(stage, done),
        )
        engine.store.save(
            stage,
            rank,
            {
                "positions": mine.positions(),
                "distances": np.where(found.robust, math.inf, found.distances),
                "mean_loss": np.full(1, found.max_mean_loss),
            },
        )
        engine.reducer.gather(torch.zeros(1))
    joined = engine.store.join(stage, world, ("positions", "distances", "mean_loss"))
    distances = np.empty(len(joined["positions"]))
    distances[joined["positions"]] = joined["distances"]
    return float(np.isinf(distances).mean()), float(joined["mean_loss"][0]), distances


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

    def positions(self) -> NDArray[np.int64]:
        """Where this rank's images stand in the set."""
        sizes = [len(y) for _, y in self.batches]
        starts = np.cumsum([0, *sizes])
        mine = [np.arange(starts[k], starts[k + 1]) for k in range(len(sizes)) if k % self.world == self.rank]
        return np.concatenate(mine) if mine else np.zeros(0, dtype=np.int64)

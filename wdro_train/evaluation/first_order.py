"""The poster's table of one network: first-order values, W-PGD, and the bounds on the ratio R = A_delta / A."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.first_order_grid import first_order_grid
from wdro_train.evaluation.whole_set_pgd import pgd_whole_set
from wdro_train.metrics.functional import FirstOrderQuantities, accuracy_ratio
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve


@dataclass(frozen=True, eq=False)
class FirstOrderRow:
    """W-FGSM and W-PGD of one loss in one ball, on a whole set as one distribution.

    Attributes:
        loss: The loss J: `ce`, `dlr` or `redlr`.
        ball: The threat.
        steps: Steps of W-PGD.
        quantities: V(0), W(0), Upsilon, what W-FGSM does, and the bounds on R.
        v_pgd: Largest mean loss that W-PGD or W-FGSM reached in this ball or a smaller one: V(delta) from below.
        pgd_acc: Accuracy under W-PGD.
        ratio_pgd: `pgd_acc` / A.
        flips: Distance at which W-PGD flipped each image, inf for none, shape [N]. The images share one budget, so
            such a distance depends on the other images too.
    """

    loss: str
    ball: WassersteinBall
    steps: int
    quantities: FirstOrderQuantities
    v_pgd: float
    pgd_acc: float
    ratio_pgd: float
    flips: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RowWithWorstCase:
    """A row beside the exact worst case over all flips that are known.

    Attributes:
        row: The row.
        worst_acc: A_delta by the knapsack in the ball of the row, an upper bound.
        ratio: R = `worst_acc` / A; NaN where A = 0.
    """

    row: FirstOrderRow
    worst_acc: float
    ratio: float


def first_order_rows(
    engine: Engine,
    *,
    norm: float,
    losses: Sequence[str],
    orders: Sequence[float],
    deltas: Sequence[float],
    steps: int,
    box: bool,
) -> list[FirstOrderRow]:
    """One row a loss, order and radius; `with_worst_case` completes them.

    Args:
        engine: The set and the network.
        norm: Ground norm.
        losses: Any of `ce`, `dlr`, `redlr`.
        orders: Wasserstein orders p > 1.
        deltas: Radii > 0.
        steps: Steps of W-PGD.
        box: See `WFGSM` and `WPGD`.
    """
    rows = []
    for loss in losses:
        grid = first_order_grid(engine, norm=norm, loss=loss, orders=list(orders), deltas=list(deltas), box=box)
        for p in orders:
            highest = grid.v0  # balls are nested: what reached a smaller radius is inside the larger one
            for delta in sorted(deltas):
                found = pgd_whole_set(engine, norm=norm, loss=loss, p=p, delta=delta, steps=steps, box=box)
                quantities = grid.quantities(p, delta)
                highest = max(highest, found.largest_mean_loss, quantities.v_q)
                rows.append(
                    FirstOrderRow(
                        loss=loss,
                        ball=WassersteinBall(p, norm, delta),
                        steps=steps,
                        quantities=quantities,
                        v_pgd=highest,
                        pgd_acc=found.accuracy,
                        ratio_pgd=accuracy_ratio(found.accuracy, grid.clean_acc),
                        flips=found.flips,
                    )
                )
    return rows


def with_worst_case(rows: Sequence[FirstOrderRow], curve: RobustnessCurve) -> list[RowWithWorstCase]:
    """The rows beside A_delta and R = A_delta / A by the knapsack over all distances known.

    Args:
        rows: From `first_order_rows`.
        curve: Pooled over all attacks, W-PGD's flips included.
    """
    done = []
    for row in rows:
        worst = curve.accuracy(row.ball.delta, row.ball.p)
        done.append(RowWithWorstCase(row, worst, accuracy_ratio(worst, curve.clean_accuracy)))
    return done

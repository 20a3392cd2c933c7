"""The least margin of a ReLU network over a box of images, as a mixed-integer linear program (MILP).

A ReLU whose input has one sign in the whole box is affine there. Each of the others, a = max(z, 0) with l < 0 < h the
bounds of z, becomes four linear constraints with one binary s (Tjeng, Xiao and Tedrake 2019, arXiv 1711.07356):

    a >= z,  a >= 0,  a <= z - l (1 - s),  a <= h s.

Affine parts are substituted, so that the variables are the pixels and three for each of these unstable ReLUs; a network
whose bounds leave few of them is a small program however large it is.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from torch import Tensor

from wdro_train.certificates.affine_pieces import AffinePieces

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# HiGHS accepts reduced costs of the wrong sign up to 1e-7, each of which moves a bound by at most 1e-7 times the range
# of its variable or row, and constraints that are violated by 1e-6. This is taken of the sum of all ranges.
SOLVER_TOLERANCE = 1e-6
# The bounds of unstable ReLUs are loosened by this share of the largest of their layer, for the rounding of float64.
_LOOSENING = 1e-9
# The solver stops once its bound is above this share of the best value found. What counts as a proof may be more, then
# it goes on with a smaller gap; on undecided images of a network of 200 ReLUs it hardly ever had to, and a cut-off of
# the objective, which ends in "infeasible" instead of a bound, took twice the time.
_GAP = 1 - 1e-3


@dataclass(frozen=True)
class LeastMargin:
    """What the solver found about min f_y - f_j over a box.

    Attributes:
        bound: A proven lower bound of it where it is positive, less the solver's tolerance; -inf if the time was up.
        point: An image of the box at which f_y - f_j is 0 or nearly so, or below, shape of an image, float64; None if
            none was found. Nothing is claimed of it: the network has to be asked.
    """

    bound: float
    point: Tensor | None


@dataclass
class _Program:
    """Variables with bounds, and rows low <= A variables <= high, under construction."""

    lower: list[Floats] = field(default_factory=list)
    upper: list[Floats] = field(default_factory=list)
    binary: list[Floats] = field(default_factory=list)
    blocks: list[tuple[Indices, Indices, Floats]] = field(default_factory=list)
    low: list[Floats] = field(default_factory=list)
    high: list[Floats] = field(default_factory=list)
    variables: int = 0
    rows: int = 0

    def add(self, lower: ArrayLike, upper: ArrayLike, *, binary: bool = False) -> Indices:
        """New variables; returns their columns."""
        low, high = np.atleast_1d(np.asarray(lower, float)), np.atleast_1d(np.asarray(upper, float))
        columns = np.arange(self.variables, self.variables + len(low))
        self.lower.append(low)
        self.upper.append(high)
        self.binary.append(np.full(len(low), float(binary)))
        self.variables += len(low)
        return columns

    def constrain(self, parts: list[tuple[Indices, Floats]], low: ArrayLike, high: ArrayLike, count: int) -> None:
        """New rows.

        Args:
            parts: Columns [k] with coefficients [count, k]; or columns [count] with one coefficient [count] a row.
            low: Lower ends, broadcastable to [count].
            high: Upper ends.
            count: Number of rows.
        """
        for columns, coefficients in parts:
            if coefficients.ndim == 1:
                self.blocks.append((np.arange(count) + self.rows, columns, coefficients))
            else:
                rows, inner = np.nonzero(coefficients)
                self.blocks.append((rows + self.rows, columns[inner], coefficients[rows, inner]))
        self.low.append(np.broadcast_to(np.asarray(low, float), count))
        self.high.append(np.broadcast_to(np.asarray(high, float), count))
        self.rows += count

    def largest(self, columns: Indices, coefficients: Floats) -> float:
        """An upper bound of a linear function of some variables, by their bounds alone."""
        low, high = np.concatenate(self.lower)[columns], np.concatenate(self.upper)[columns]
        return float(np.maximum(coefficients * low, coefficients * high).sum())

    def copy(self) -> _Program:
        """Another one with the same variables and rows, to which more may be added."""
        lists = (list(self.lower), list(self.upper), list(self.binary), list(self.blocks), list(self.low))
        return _Program(*lists, list(self.high), self.variables, self.rows)

    def minimise(self, column: int, gap: float, limit: float) -> OptimizeResult:
        """Minimise one variable.

        Args:
            column: Its column.
            gap: Relative distance of bound and value at which the solver may stop.
            limit: Seconds.
        """
        rows, columns, values = (np.concatenate(part) for part in zip(*self.blocks, strict=True))
        matrix = sparse.coo_array((values, (rows, columns)), shape=(self.rows, self.variables)).tocsc()
        objective = np.zeros(self.variables)
        objective[column] = 1.0
        found = milp(
            objective,
            integrality=np.concatenate(self.binary),
            bounds=Bounds(np.concatenate(self.lower), np.concatenate(self.upper)),
            constraints=LinearConstraint(matrix, np.concatenate(self.low), np.concatenate(self.high)),
            options={"time_limit": max(limit, 1e-3), "mip_rel_gap": gap},
        )
        if found.status == 0 and not any(
            part.any() for part in self.binary
        ):  # a linear program: its value is its bound
            found.mip_dual_bound = found.fun
        return found


class ReluProgram:
    """A network over one box of images, ready to be asked for the margins against any rival.

    Args:
        network: The affine pieces.
        low: Least values of the pixels, shape [C, H, W].
        high: Largest values.
        boxes: Sound lower and upper bounds of the values before each ReLU over the box, each of the shape of one
            image's values.
    """

    def __init__(self, network: AffinePieces, low: Tensor, high: Tensor, boxes: list[tuple[Tensor, Tensor]]) -> None:
        self._shape = low.shape
        self._program = program = _Program()
        self._pixels = carriers = program.add(low.flatten().numpy(), high.flatten().numpy())
        self._range = float((high - low).sum())
        eye = torch.eye(low.numel(), dtype=torch.float64)
        functions = torch.cat([eye.new_zeros(1, low.numel()), eye]).view(-1, *low.shape)
        self.unstable = 0
        for k, box in enumerate(boxes):
            values = network.through(k, functions)
            least, most = (bound.double().flatten() for bound in box)
            rows = ((least < 0) & (most > 0)).nonzero().squeeze(1)
            new = self._relus(values.flatten(1)[:, rows], carriers, least[rows].numpy(), most[rows].numpy())
            carriers = np.concatenate([carriers, new])
            units = torch.zeros(len(rows), least.numel(), dtype=torch.float64)
            units[torch.arange(len(rows)), rows] = 1
            functions = torch.cat([values.flatten(1) * (least >= 0), units]).view(-1, *values.shape[1:])
            self.unstable += len(rows)
        self._carriers = carriers
        self._logits = network.through(len(boxes), functions).numpy()

    def _relus(self, functions: Tensor, carriers: Indices, low: Floats, high: Floats) -> Indices:
        """Variables and constraints for unstable ReLUs; returns the columns of their values.

        Args:
            functions: Their inputs as affine functions of the carriers, shape [1 + carriers, count].
            carriers: Columns of the program that carry values forward.
            low: Lower bounds of their inputs, negative, shape [count].
            high: Upper bounds, positive.
        """
        program, count = self._program, len(low)
        constant, coefficients = functions[0].numpy(), functions[1:].numpy().T
        slack = _LOOSENING * float(np.abs(np.concatenate([low, high, [0.0]])).max())
        low, high, one = low - slack, high + slack, np.ones(count)
        before, after = program.add(low, high), program.add(np.zeros(count), high)
        switch = program.add(np.zeros(count), one, binary=True)
        program.constrain([(carriers, coefficients), (before, -one)], -constant, -constant, count)
        program.constrain([(after, one), (before, -one)], 0.0, np.inf, count)
        program.constrain([(after, one), (before, -one), (switch, -low)], -np.inf, -low, count)
        program.constrain([(after, one), (switch, -high)], -np.inf, 0.0, count)
        self._range += float((5 * (high - low) + 1).sum())  # of z, a, s, and of the rows' three slacks
        return after

    def least_margin(self, label: int, rival: int, rounding: float, limit: float) -> LeastMargin:
        """Search a point with f_y - f_j <= 0, or prove that there is none.

        Minimises t >= 0 with t >= f_y - f_j + rounding, so that both ends stop early: a point with t = 0 is optimal,
        and a dual bound above rounding and tolerance is a proof, however far it is from the minimum.

        Args:
            label: y.
            rival: j.
            rounding: By how much the difference of two logits of the network may be off, in logit units.
            limit: Seconds.
        """
        deadline = time.monotonic() + limit
        program, gap = self._program.copy(), _GAP
        difference = self._logits[:, label] - self._logits[:, rival]
        largest = max(0.0, difference[0] + program.largest(self._carriers, difference[1:]) + rounding)
        (excess,) = program.add(0.0, largest)
        # Besides the variables and rows of the network there are this one and the slack of its row.
        tolerance = SOLVER_TOLERANCE * (self._range + 2 * largest)
        enough = 2 * rounding + tolerance
        row = (self._carriers, difference[None, 1:]), (np.asarray([excess]), -np.ones(1))
        program.constrain(list(row), -np.inf, -difference[0] - rounding, 1)
        found = program.minimise(excess, gap, limit)
        while found.status == 0 and found.mip_dual_bound <= enough < found.fun and time.monotonic() < deadline:
            gap = min(gap / 2, 1 - 1.1 * enough / found.fun)
            found = program.minimise(excess, gap, deadline - time.monotonic())
        dual = -math.inf if found.mip_dual_bound is None else float(found.mip_dual_bound)
        point = None if found.x is None else torch.from_numpy(found.x[self._pixels]).view(self._shape)
        return LeastMargin(dual - rounding - tolerance, point)

"""Lower bounds of a network's margins over balls around images, with slopes that are optimised for each of them."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from wdro_train.certificates.box_interpreter import BoxInterpreter
from wdro_train.certificates.boxes import Box
from wdro_train.certificates.margin_bounds import difference_rows, smallest
from wdro_train.certificates.relaxed_graph import relaxed_logits
from wdro_train.certificates.relaxed_network import RelaxedNetwork
from wdro_train.certificates.slopes import optimised_bounds
from wdro_train.certificates.tape import Tape
from wdro_train.utils.errors import UserError

# Flat layers have at most so many values where boxes are improved: each costs two backward passes a step.
_MOST_NEURONS = 512
# Steps that all images get whose margins are still open, one stage after the other; those that remain begin anew. On
# the images of `slopes` 8 steps gained 98 % of what 100 do.
_STAGES = (8, 40)


class OptimisedNetwork:
    """A network whose margins are bounded by linear relaxation with optimised slopes (alpha-CROWN, arXiv 2011.13824).

    Boxes come from `RelaxedNetwork` where it covers the network, else from interval arithmetic; those of flat layers of
    at most 512 values are improved by optimised bounds of their own. Then every rival that is still open gets slopes of
    its own. Images and rivals that are certified already cost nothing more.

    Args:
        model: Any network whose operations have interval bounds; see `wdro_train.certificates.intervals`.
        like: Images, whose shape is the network's input.
        dtype: Type to compute in.
        norm: Ground norm s, one of 1, 2, inf.
        stages: Steps of the optimisation.
    """

    def __init__(
        self,
        model: nn.Module,
        like: Tensor,
        dtype: torch.dtype,
        norm: float,
        stages: tuple[int, ...] = _STAGES,
    ) -> None:
        self._network, self.dtype, self.norm, self.stages = BoxInterpreter(model, dtype), dtype, norm, stages
        self._crown: RelaxedNetwork | None = None
        with suppress(UserError):  # it does not cover a network that only its graph describes
            self._crown = RelaxedNetwork(model, like, dtype, norm=norm)

    def margins(self, x: Tensor, y: Tensor, radii: Tensor, enough: Tensor | None = None) -> Tensor:
        """See `MarginBounds`."""
        x, radii = x.to(self.dtype), radii.to(self.dtype)
        enough = torch.zeros_like(radii) if enough is None else enough.to(radii)
        differences, boxes = self._first(x, y, radii)
        for steps in self.stages:
            rows = (smallest(differences, y) <= enough).nonzero().squeeze(1)
            if len(rows):
                known = [Box(box.center[rows], box.radius[rows]) for box in boxes]
                open_rows = (x[rows], y[rows], radii[rows], enough[rows])
                differences[rows] = self._improved(*open_rows, differences[rows], known, steps)
        return smallest(differences, y).double()

    def _first(self, x: Tensor, y: Tensor, radii: Tensor) -> tuple[Tensor, list[Box]]:
        """Bounds without optimisation of f_y - f_j, shape [B, m], and the boxes that they rest on, if they help."""
        if self._crown is None:
            logits, by_intervals = relaxed_logits(self._network, x, y, radii, self.norm)
            rows = difference_rows(y, by_intervals.shape[1], x)
            return torch.maximum(logits.tape.lower_bounds(logits.value, rows).T, by_intervals), []
        found = self._crown.bounded(x, y, radii, self.norm)
        rivals = ~functional.one_hot(y, self._crown.classes).bool()
        differences = found.margins.new_zeros(rivals.shape).masked_scatter(rivals, found.margins)
        return differences, [Box.between(low, high) for low, high in found.boxes]

    def _improved(
        self, x: Tensor, y: Tensor, radii: Tensor, enough: Tensor, differences: Tensor, boxes: list[Box], steps: int
    ) -> Tensor:
        """Better bounds of f_y - f_j.

        Args:
            x: Images, shape [B, ...].
            y: Labels, shape [B].
            radii: Shape [B].
            enough: See `margins`.
            differences: What is known of f_y - f_j, shape [B, m].
            boxes: What is known of the arguments of the first nonlinear operations.
            steps: Of the optimisation.
        """
        tighten = partial(_tightened, boxes, steps)
        logits, by_intervals = relaxed_logits(self._network, x, y, radii, self.norm, tighten)
        known = torch.maximum(differences, by_intervals).scatter(1, y[:, None], torch.inf)
        most = int((known <= enough[:, None]).sum(1).amax())
        if not most:  # the better boxes alone have closed every margin
            return known.scatter(1, y[:, None], 0.0)
        rivals = known.argsort(1)[:, :most]  # for each image those that are farthest from being certified
        rows = difference_rows(y, known.shape[1], x)[rivals.T, torch.arange(len(x), device=x.device)]
        bounds = optimised_bounds(logits.tape, logits.value, rows, steps, enough)
        better = torch.maximum(bounds.T, known.gather(1, rivals))
        return known.scatter(1, rivals, better).scatter(1, y[:, None], 0.0)


def _tightened(boxes: list[Box], steps: int, tape: Tape, value: Tensor, box: Box) -> Box:
    """A better box for the argument of the next nonlinear operation; see `Tighten`.

    Args:
        boxes: Those that are known, in the order of the operations.
        steps: Of the optimisation.
        tape: The record.
        value: The argument.
        box: Its box.
    """
    low, high = box.low, box.high
    if len(tape.steps) < len(boxes):
        other = boxes[len(tape.steps)]
        low, high = torch.maximum(low, other.low.view_as(low)), torch.minimum(high, other.high.view_as(low))
    count = low.shape[1:].numel()
    if tape.steps and count <= _MOST_NEURONS and bool(((low < 0) & (high > 0)).any()):
        flat_low, flat_high = low.flatten(1), high.flatten(1)
        unstable = (flat_low < 0) & (flat_high > 0)
        places = unstable.to(low).argsort(1, descending=True)[:, : int(unstable.sum(1).amax())]
        rows = functional.one_hot(places.T, count).to(low).view(-1, *low.shape)
        lower, minus_upper = optimised_bounds(tape, value, torch.cat([rows, -rows]), steps).chunk(2)
        low = flat_low.scatter(1, places, torch.maximum(lower.T, flat_low.gather(1, places))).view_as(low)
        high = flat_high.scatter(1, places, torch.minimum(-minus_upper.T, flat_high.gather(1, places))).view_as(high)
    return Box.between(low, torch.maximum(low, high))

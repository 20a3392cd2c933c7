"""Sign steps inside a radius of each image whose length adapts to the image, as those of Auto-PGD.

Where logits are far from linear within the radius, as on deep networks of normal training, such steps find flips that
the momentum steps of `AimedSearch` do not; where a network was trained until images barely flip, it is the other way
round (docs/results/distances_effort.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import input_gradient
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.theory.box import free_gradient, move, projected_step
from wdro_train.theory.ground_norm import choose_images
from wdro_train.theory.losses import LossFunction, correct

# The constants are those of the authors: the first step in units of the radius, the share of a step that its projection
# counts, how long the first window is and by how much windows shorten (in units of all steps), and the share of the
# steps of a window that have to rise.
_FIRST_STEP = 2.0
_PROJECTED = 0.75
_FIRST_WINDOW, _SHORTENING, _LEAST_WINDOW = 0.22, 0.03, 0.06
_RISES = 0.75


@dataclass(frozen=True)
class AdaptiveSearch:
    """Auto-PGD of Croce and Hein 2020 (arXiv 2003.01690): a step is halved where the loss does not keep rising.

    After each window of steps the images whose loss rose too seldom, or whose best loss and step are as after the
    window before, go back to their best point and on with half the step.

    Attributes:
        steps: Number of steps.
    """

    steps: int

    def __call__(
        self,
        flips: NearestFlips,
        radii: Tensor,
        goal: float,
        loss: LossFunction,
        targets: Tensor,
        start: Tensor,
        fast: nn.Module | None = None,
    ) -> None:
        """Search once; call inside `attack_mode`.

        Args:
            flips: Takes what is found.
            radii: Within which distance to look, float64, shape [N].
            goal: An image whose flip is no further than this is finished, and left alone from the next window on.
            loss: Maps logits [B, m] and the images' rows of `targets` to [B]; it is ascended.
            targets: What the loss is told about each image, shape [N] or [N, k].
            start: First points, shape of the images; they are brought inside the radii.
            fast: The network whose gradients are followed (see `SearchArithmetic`); None for that of `flips`.
        """
        ground, model = flips.ground, flips.model if fast is None else fast
        rows = torch.arange(len(start), device=start.device)
        part = flips.part(rows)
        u = start - flips.x
        point = before = move(flips.x, ground.shrink(u, ground.distances(u), radii))
        losses, slope = self._look(part, model, point, loss, targets)
        best, best_losses, best_slope = point, losses, slope
        length, last_best = _FIRST_STEP * radii, losses
        halved = torch.ones_like(radii, dtype=torch.bool)
        rises = torch.zeros_like(radii)
        window, done = max(int(_FIRST_WINDOW * self.steps), 1), 0
        for step in range(self.steps):
            ahead = projected_step(ground, part.x, point, slope, length, radii)
            share = _PROJECTED if step else 1.0
            u = torch.lerp(point - before, ahead - point, share).add_(point).sub_(part.x)
            before, point = point, move(part.x, ground.shrink(u, ground.distances(u), radii))
            previous = losses
            losses, slope = self._look(part, model, point, loss, targets)
            rises += losses > previous
            better = losses > best_losses
            best = choose_images(better, point, best)
            best_slope = choose_images(better, slope, best_slope)
            best_losses = torch.maximum(losses, best_losses)
            done += 1
            if done < window:
                continue
            stuck = ~halved & (best_losses <= last_best)
            halved, last_best = (rises <= _RISES * window) | stuck, best_losses
            length = torch.where(halved, length / 2, length)
            point, slope = choose_images(halved, best, point), choose_images(halved, best_slope, slope)
            rises, done = torch.zeros_like(rises), 0
            window = max(window - int(_SHORTENING * self.steps), int(_LEAST_WINDOW * self.steps), 1)
            open_ = part.distances > goal
            if not open_.all():
                flips.put(rows, part)
                kept = (rows, radii, targets, point, before, losses, slope, best, best_losses, best_slope)
                rows, radii, targets, point, before, losses, slope, best, best_losses, best_slope = (
                    each[open_] for each in kept
                )
                length, last_best, halved, rises = (each[open_] for each in (length, last_best, halved, rises))
                part = flips.part(rows)
            if not len(rows):
                return
        flips.put(rows, part)

    @staticmethod
    def _look(
        flips: NearestFlips, model: nn.Module, point: Tensor, loss: LossFunction, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses [N] and free gradients at one point of each image, of which flips are kept."""
        here = input_gradient(model, point, targets, loss, flips.batch_size)
        with torch.no_grad():
            flips.take(point, flips.ground.between(point, flips.x), ~correct(here.logits, flips.y))
            return here.losses.double().nan_to_num(), free_gradient(here.gradient, point)

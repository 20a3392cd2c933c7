"""The distance of each image to its nearest flip, of which worst-case accuracy is made (theory, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.nearest_flip_search import STEP_SIZES, NearestFlipSearch, SearchEffort
from wdro_train.attacks.network_check import check_logits
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.losses import correct
from wdro_train.utils.errors import UserError


@dataclass(frozen=True)
class Distances:
    """How far each image is from the nearest misclassified point that was found.

    Attributes:
        distances: ||x'_i - x_i||_s, float64, shape [N]: 0 for misclassified images, inf where no flip was found.
            Upper bounds on the true distances d_i.
        x_adv: The flipped images in [0, 1], float32; the clean image where nothing was found.
        clean_correct: The images classified correctly to begin with, boolean, shape [N].
        nonfinite_gradients: Number of (image, step) pairs whose gradient was not finite.
        zero_gradients: Number of correct images whose gradient at the image itself vanished.
    """

    distances: Tensor
    x_adv: Tensor
    clean_correct: Tensor
    nonfinite_gradients: int
    zero_gradients: int


class MinimalDistance:
    """Minimise ||x' - x||_s over the misclassified x' in [0, 1]^n: a minimum-norm attack, with a radius for each image.

    Each step goes down the softened margin in the best direction inside the box, by a multiple of the image's current
    radius, and comes back to that radius; the radius shrinks below the nearest flip found so far, and grows while there
    is none. Steps and rates of change fall along a cosine, so that the iterates settle on the boundary. This is the
    scheme of FMN (Pintor et al. 2021, arXiv 2102.12827), but with steps relative to the radius that are exact inside
    the box, and for s = 1 along few pixels, as in l_1-APGD (Croce and Hein 2021, arXiv 2103.01208). Flips are then
    pulled back by bisection, moved to the foot of the perpendicular from the image on the linearised boundary, and
    looked at once more.

    Misclassified images have distance 0 and take one forward pass. Correct ones take `steps` + 2 forward and backward
    passes for each restart and target, and some 20 forward passes for each.

    Args:
        norm: Ground norm: 1, 2 or inf.
        steps: Gradient steps of a run.
        restarts: Runs against whichever rival class is nearest; all but the first start from random points.
        targets: Number of further runs, the k-th of them against the k-th strongest rival class.
        step_size: First step in units of the current radius; by default 1, 3 and 0.75 for norms 1, 2 and inf.
        batch_size: Images per forward pass; None for all at once.
    """

    def __init__(
        self,
        *,
        norm: float | str,
        steps: int = 30,
        restarts: int = 1,
        targets: int = 0,
        step_size: float | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.ground = GroundNorm(norm)
        if self.ground.order not in (1, 2, float("inf")):
            raise UserError(f"attack.norm={self.ground.order:g} has no minimum-norm attack; choose 1, 2 or inf")
        if steps < 1 or restarts < 1 or targets < 0:
            raise UserError(f"steps={steps}, restarts={restarts}, targets={targets}: choose at least 1, 1 and 0")
        if step_size is None:
            step_size = STEP_SIZES[self.ground.order]
        self.effort = SearchEffort(int(steps), int(restarts), int(targets), float(step_size), batch_size)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator | None = None,
        fast: nn.Module | None = None,
    ) -> Distances:
        """Search the nearest flip of every image of a batch.

        Args:
            model: Maps images in [0, 1] to logits.
            x: Images in [0, 1], shape [N, C, H, W].
            y: Labels, shape [N].
            generator: Source of random starts; None for the default one.
            fast: The network whose gradients are followed (see `SearchArithmetic`); None for `model`, which looks at
                all flips in any case.
        """
        with batch_under_attack(model, x, y) as (x, y, labels):
            with torch.no_grad():
                logits = forward(model, x, self.effort.batch_size)
            check_logits(model, x, logits, labels)
            robust = correct(logits, y)
            distances = torch.where(robust, torch.inf, torch.zeros(len(x), dtype=torch.float64, device=x.device))
            x_adv = x.clone()
            rows = robust.nonzero().squeeze(1)
            search = NearestFlipSearch(self.ground, self.effort, model, x[rows], y[rows], fast)
            if len(rows):
                search.run(logits[rows], generator)
                distances[rows], x_adv[rows] = search.flips.distances, search.flips.points
            return Distances(distances, x_adv, robust, int(search.nonfinite), int(search.zero))

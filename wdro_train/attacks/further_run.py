"""One search inside the radii for images of which some flips are known, and what it finds brought to the boundary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wdro_train.attacks.adaptive_search import AdaptiveSearch
from wdro_train.attacks.aimed_search import AimedSearch
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.random_search import RandomSearch
from wdro_train.theory.losses import LossFunction

# A flip that was meant to lie at a radius must not lie beyond it by rounding: the radius and a displacement in float32.
_INSIDE = 1 - 1e-6
# A flip that is known is improved upon from 2 % below: less than what a run usually gains, more than rounding.
_BELOW = 0.98


def search_radii(known: NearestFlips, reach: float) -> Tensor:
    """Within which distance of each image a flip would be nearer than the known one and matter, float64, shape [N].

    Args:
        known: The nearest flips so far.
        reach: No flip beyond this distance matters.
    """
    radii = torch.minimum(_BELOW * known.distances, torch.full_like(known.distances, _INSIDE * reach))
    return radii.clamp(max=known.ground.diameter(known.x))


class FurtherRun:
    """Looks for nearer flips than those that are known, within the distance at which a flip would still matter.

    Args:
        known: The nearest flips so far; they are replaced by nearer ones.
        reach: No flip beyond this distance matters.
        goal: An image with a flip this near needs no nearer one; 0 if nearer ones are always wanted.
        fast: The network whose gradients are followed (see `SearchArithmetic`); None for that of `known`.

    Attributes:
        radii: Within which distance each image is searched, float64, shape [N].
    """

    def __init__(self, known: NearestFlips, reach: float, goal: float, fast: nn.Module | None = None) -> None:
        self.known, self.goal, self.fast = known, goal, fast
        self.radii = search_radii(known, reach)

    def __call__(self, loss: LossFunction, targets: Tensor, start: Tensor, steps: int, size: float) -> Tensor:
        """Search once, and keep what is nearer after it was brought down to the boundary and looked at again.

        Args:
            loss: See `AimedSearch.run`.
            targets: What the loss is told about each image.
            start: First points, shape of the images.
            steps: Number of steps.
            size: First step, in units of the usual one.

        Returns:
            How close the run came to a flip, shape [N]; see `AimedSearch.run`.
        """
        found = self._copy()
        closeness = AimedSearch(found, self.radii, self.goal, self.fast).run(loss, targets, start, steps, size)
        self._keep(found)
        return closeness

    def adaptively(self, search: AdaptiveSearch, loss: LossFunction, targets: Tensor, start: Tensor) -> None:
        """The same by steps that adapt to the image.

        Args:
            search: What to do.
            loss: See `AdaptiveSearch`.
            targets: What the loss is told about each image.
            start: First points, shape of the images.
        """
        found = self._copy()
        search(found, self.radii, self.goal, loss, targets, start, self.fast)
        self._keep(found)

    def at_random(self, search: RandomSearch, start: Tensor, generator: torch.Generator | None) -> None:
        """The same by random search.

        Args:
            search: What to do.
            start: First points, shape of the images.
            generator: Source of random squares.
        """
        found = self._copy()
        search(found, self.radii, start, generator)
        self._keep(found)

    def _copy(self) -> NearestFlips:
        return self.known.part(torch.arange(len(self.known.x), device=self.known.x.device))

    def _keep(self, found: NearestFlips) -> None:
        """Keep what is nearer after it was brought down to the boundary and looked at again."""
        known = self.known
        better = (found.distances < known.distances).nonzero().squeeze(1)
        if not len(better):
            return
        nearer = found.part(better)
        if self.fast is not None and self.fast is not known.model:
            nearer.confirm()
        nearer.refine(near=True)
        nearer.recheck()
        kept = (nearer.distances < known.distances[better]).nonzero().squeeze(1)
        known.put(better[kept], nearer.part(kept))

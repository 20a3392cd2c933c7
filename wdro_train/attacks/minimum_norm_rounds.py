"""Further runs of the minimum-norm attack, for images whose nearest flip matters however near one is known.

A run inside the radius of the flip that is known ends in the valley of that flip more often than one that begins far
inside it and is told which class to go to (docs/results/distances_effort.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from wdro_train.attacks.further_run import search_radii
from wdro_train.attacks.nearest_flip_search import STEP_SIZES, NearestFlipSearch, SearchEffort
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.rounds import OneRun, Wanted

# Bisecting a flip and looking at it again takes some 10 forward passes, and bringing it down the rest of the way, where
# that is done, at most 14 more and 2 polishes.
_BISECTION, _DESCENT = 5.0, 9.0
# Flips that bisection brings within this multiple of the distance that would be an improvement are brought down the
# rest of the way, which takes less than 2 % off all but a few; 40 % of the runs towards a rival end within it.
_IN_REACH = 1.15


@dataclass(frozen=True)
class MinimumNorm(OneRun):
    """One run of the search of `MinimalDistance`."""

    def passes(self, classes: int) -> float:
        """See `FurtherSearch`."""
        return self.steps + _BISECTION + _DESCENT

    def search(
        self, part: NearestFlips, wanted: Wanted, generator: torch.Generator | None, fast: nn.Module | None
    ) -> None:
        """See `FurtherSearch`."""
        effort = SearchEffort(self.steps, 1, 0, STEP_SIZES[part.ground.order], part.batch_size)
        search = NearestFlipSearch(part.ground, effort, part.model, part.x, part.y, fast)
        radii = search_radii(part, wanted.reach)
        search.once(*self.target(part), self.start(part, radii, generator), within=_IN_REACH * radii)
        found = search.flips
        found.recheck()
        part.take(found.points, found.distances, found.distances < torch.inf)

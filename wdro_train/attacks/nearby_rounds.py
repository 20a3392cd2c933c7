"""Rounds for the images that are most likely to be flipped yet: those whose nearest flip lies just beyond the radius.

At p = inf a flip matters where it lies within the radius delta, and after a minimum-norm attack most images without one
are far from having one. On `mnist_mlp_lpd_0.1` 3 % of the images without a flip at 0.1 have one within 0.115, and those
that further rounds flip are among them, so that many rounds on these cost less than one on all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.rounds import FurtherSearch, Wanted

# Up to which multiple of the radius the nearest flip that is known may lie. The 12 of 10,000 images that rounds flip on
# `mnist_mlp_lpd_0.1` had theirs within 1.06 radii (docs/results/distances_effort.md).
_BAND = 1.15
# At most which share of the images without a flip within the radius: those just named were 3 % of them. Where many more
# lie in the band (`mnist_cnn_a_adv`: 60 %), rounds of which each asks all of them find no more than others do.
_MOST = 0.05
# So many of them are searched in any case: a twentieth of few images is hardly one. Of the 19 of 500 images that the
# first search leaves of `cifar_resnet20`, AutoAttack flips the nearest four.
_LEAST = 20


@dataclass(frozen=True)
class Nearby(FurtherSearch):
    """Several rounds, one after the other, for the images whose nearest flip is just too far.

    Where no radius is fixed, at p < inf, there are none.

    Attributes:
        kind: Their name, for the report.
        rounds: What to do.
        band: Nearest flips up to this multiple of the radius are just too far.
        most: Share of the images without a flip within the radius that are searched at most, the nearest of them and
            those as near as the last.
        least: So many are searched even if they are more than this share.
        limit: How far nearest flips may lie, for the batches of a set; None where the images are the whole set.
    """

    kind: str
    rounds: tuple[FurtherSearch, ...]
    band: float = _BAND
    most: float = _MOST
    least: int = _LEAST
    limit: float | None = None

    def of_set(self, wanted: Wanted, distances: Tensor) -> Nearby:
        """See `FurtherSearch`: the share is one of the set, so that its batches do not change what is asked for."""
        return replace(self, limit=self._limit(wanted, distances))

    def asked(self, wanted: Wanted, distances: Tensor) -> Tensor:
        """See `FurtherSearch`."""
        limit = self._limit(wanted, distances) if self.limit is None else self.limit
        return wanted.asked(distances) & (distances <= limit)

    def passes(self, classes: int) -> float:
        """See `FurtherSearch`."""
        return sum(one.passes(classes) for one in self.rounds)

    def search(
        self, part: NearestFlips, wanted: Wanted, generator: torch.Generator | None, fast: nn.Module | None
    ) -> None:
        """See `FurtherSearch`."""
        for one in self.rounds:
            one(part, wanted, generator=generator, fast=fast)

    def _limit(self, wanted: Wanted, distances: Tensor) -> float:
        """How far the nearest flips of the images that are asked for lie at most; minus infinity if there are none."""
        without = wanted.asked(distances)
        near = distances[without & (distances <= self.band * wanted.reach)]
        if wanted.goal == 0 or math.isinf(wanted.reach) or not len(near):
            return -math.inf
        most = max(self.least, math.ceil(self.most * int(without.sum())))
        return float(near.sort().values[:most][-1])

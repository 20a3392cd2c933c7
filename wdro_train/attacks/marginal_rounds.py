"""Rounds at p < inf for the images that the worst case moves, and others for those that it does not reach.

The worst case pays d^p to move an image by its distance d, and no more than D^p, with D the distance of the marginal
image. A nearer flip of an image that it moves always saves something. One of an image that it does not move matters
only within D, as at p = inf one matters only within delta, and most images have none there: on networks of worst-case
training, whose nearest flips lie just beyond D, three in five of the correct images are such
(docs/results/distances_effort.md).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.rounds import FurtherSearch, Wanted


@dataclass(frozen=True)
class SomeImages(FurtherSearch):
    """A search of some of the images that another one would ask for.

    Attributes:
        kind: Its name, for the report.
        one: The other one.
    """

    kind: str
    one: FurtherSearch

    @abstractmethod
    def chosen(self, wanted: Wanted, distances: Tensor) -> Tensor:
        """Which images may be searched, shape [N].

        Args:
            wanted: Which flips would matter.
            distances: To the nearest flips so far, shape [N].
        """

    def of_set(self, wanted: Wanted, distances: Tensor) -> FurtherSearch:
        """See `FurtherSearch`."""
        return replace(self, one=self.one.of_set(wanted, distances))

    def asked(self, wanted: Wanted, distances: Tensor) -> Tensor:
        """See `FurtherSearch`."""
        return self.one.asked(wanted, distances) & self.chosen(wanted, distances)

    def passes(self, classes: int) -> float:
        """See `FurtherSearch`."""
        return self.one.passes(classes)

    def search(
        self, part: NearestFlips, wanted: Wanted, generator: torch.Generator | None, fast: nn.Module | None
    ) -> None:
        """See `FurtherSearch`."""
        self.one.search(part, wanted, generator, fast)


@dataclass(frozen=True)
class WithinReach(SomeImages):
    """For the images that the worst case moves, but for the cheapest of them; where it moves all, for those left."""

    def chosen(self, wanted: Wanted, distances: Tensor) -> Tensor:
        """See `SomeImages`."""
        return (distances <= wanted.reach) & (distances >= wanted.cheap)


@dataclass(frozen=True)
class BeyondReach(SomeImages):
    """For the images whose nearest flip lies beyond the reach of the worst case, or of which none is known."""

    def chosen(self, wanted: Wanted, distances: Tensor) -> Tensor:
        """See `SomeImages`."""
        return (distances > wanted.reach) | distances.isinf()

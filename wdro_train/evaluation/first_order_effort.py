"""How many steps W-PGD takes, and under which losses, so that an evaluation does not wait for first-order rows.

For N images, L losses and K balls of each, the rows take for every image

    L (2 + K (s + 1))   pairs of a forward and a backward pass:

two gradients for Upsilon and for moving the images by W-FGSM, and in each ball one forward pass at the moved images, s
steps of W-PGD, and one forward pass at its last iterate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

# On the reference networks of the tests (500 images, l_inf and l_2, p = 2) W-PGD leaves under ReDLR at most 9.0 points
# more after 10 steps than after 50, and under CE at most 1.6; after 20 steps it is at most 4.4 and 0.4.
FEWEST_STEPS = 10
"""Steps below which no row is computed."""
ENOUGH_STEPS = 20
"""Steps that every loss has to get before there are several."""


class Plan(NamedTuple):
    """What is run.

    Attributes:
        losses: Under which losses; none where nothing worth its time can be run.
        steps: Steps of W-PGD.
    """

    losses: tuple[str, ...]
    steps: int


class FirstOrderEffort(Protocol):
    """Decides how much is run."""

    def __call__(self, losses: Sequence[str], balls: int, images: int, spent: float) -> Plan:
        """Decide, before the rows are computed.

        Args:
            losses: That were asked for, the one that matters most last.
            balls: Number of orders times number of radii.
            images: Number of images.
            spent: Pairs of a forward and a backward pass that the distances took.
        """
        ...


@dataclass(frozen=True)
class AllSteps:
    """Every loss with the same number of steps, whatever it costs.

    Attributes:
        steps: Steps of W-PGD.
    """

    steps: int

    def __call__(self, losses: Sequence[str], balls: int, images: int, spent: float) -> Plan:
        """All losses, all steps."""
        return Plan(tuple(losses), self.steps)


@dataclass(frozen=True)
class WithinPasses:
    """As many of the last losses as get enough steps, and as many steps as there are passes for.

    Attributes:
        steps: At most so many steps of W-PGD.
        share: Passes of all rows, as a multiple of those that the distances took.
    """

    steps: int
    share: float

    def __call__(self, losses: Sequence[str], balls: int, images: int, spent: float) -> Plan:
        """See `FirstOrderEffort`."""
        for count in range(len(losses), 0, -1):
            steps = self._affordable(count, balls, images, spent)
            if steps >= min(FEWEST_STEPS if count == 1 else ENOUGH_STEPS, self.steps):
                return Plan(tuple(losses[-count:]), min(steps, self.steps))
        return Plan((), 0)

    def _affordable(self, losses: int, balls: int, images: int, spent: float) -> int:
        return math.floor(((self.share * spent / images) / losses - 2) / balls - 1)

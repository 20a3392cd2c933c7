"""Rounds of further search for nearer flips, of different kinds: what one of them misses another may find.

A round is made of where it starts and of which function of the logits it ascends. Each round looks only inside the
radius of each image within which a flip would still matter to the worst case (see `wdro_train.evaluation.effort`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from wdro_train.attacks.adaptive_search import AdaptiveSearch
from wdro_train.attacks.further_run import FurtherRun
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.nearest_flip_search import minus_margin_to_rival, minus_soft_margin
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.starts import Start
from wdro_train.theory.losses import LossFunction, ce, dlr, margin


class Target(Protocol):
    """Which function of the logits a run ascends."""

    def __call__(self, known: NearestFlips) -> tuple[LossFunction, Tensor]:
        """The loss, and what it is told about each image, shape [N] or [N, k].

        Args:
            known: Gives network, images and labels.
        """
        ...


@dataclass(frozen=True)
class AnyRival:
    """A loss of the label: against all other classes at once.

    Attributes:
        loss: `margin` (its negative), `soft_margin` (see `minus_soft_margin`), `ce` or `dlr`.
    """

    loss: str

    def __call__(self, known: NearestFlips) -> tuple[LossFunction, Tensor]:
        """See `Target`."""
        losses: dict[str, LossFunction] = {
            "margin": _minus_margin,
            "soft_margin": minus_soft_margin,
            "ce": ce,
            "dlr": dlr,
        }
        return losses[self.loss], known.y


@dataclass(frozen=True)
class OneRival:
    """The logit of one rival class minus that of the label.

    Attributes:
        rank: Which one: 0 is the strongest at the image; with fewer classes they are gone through again.
    """

    rank: int

    def __call__(self, known: NearestFlips) -> tuple[LossFunction, Tensor]:
        """See `Target`."""
        rivals = rivals_by_strength(known)
        return minus_margin_to_rival, torch.stack([known.y, rivals[:, self.rank % rivals.shape[1]]], dim=1)


@torch.no_grad()
def rivals_by_strength(known: NearestFlips) -> Tensor:
    """The classes other than the label, the one with the largest logit at the image first, shape [N, m - 1].

    Args:
        known: Gives network, images and labels.
    """
    logits = forward(known.model, known.x, known.batch_size).float()
    return logits.scatter(1, known.y[:, None], -math.inf).argsort(dim=1, descending=True)[:, :-1]


@dataclass(frozen=True)
class Wanted:
    """Which flips would still matter.

    Attributes:
        reach: No flip beyond this distance matters.
        goal: No image with a flip this near needs another.
        cheap: Images with a flip nearer than this are moved at so little cost together that nearer ones save hardly
            anything.
    """

    reach: float
    goal: float
    cheap: float = 0.0

    def asked(self, distances: Tensor) -> Tensor:
        """Of which images nearer flips are wanted, shape [N]; misclassified ones have distance 0."""
        return (distances > self.goal) & (distances > 0)


class FurtherSearch(ABC):
    """A search for nearer flips than those that are known.

    Attributes:
        kind: Its name, for the report.
    """

    kind: str

    def asked(self, wanted: Wanted, distances: Tensor) -> Tensor:
        """Which images are searched, shape [N].

        Args:
            wanted: Which flips would matter.
            distances: To the nearest flips so far, shape [N].
        """
        return wanted.asked(distances)

    def of_set(self, wanted: Wanted, distances: Tensor) -> FurtherSearch:
        """This search as it is of each batch of a set, where what it asks for depends on the whole set.

        Args:
            wanted: Which flips would matter.
            distances: To the nearest flips of the set so far, shape [N].
        """
        return self

    @abstractmethod
    def passes(self, classes: int) -> float:
        """About how many passes it takes of each image that it searches, in pairs of a forward and a backward one.

        What is found is brought down to the boundary in some more; few images are.

        Args:
            classes: Of the network.
        """

    def __call__(
        self,
        known: NearestFlips,
        wanted: Wanted,
        *,
        generator: torch.Generator | None = None,
        fast: nn.Module | None = None,
    ) -> None:
        """Look for nearer flips, and put them in place of those that are known; call inside `attack_mode`.

        Args:
            known: The nearest flips so far of all images, misclassified ones included; no distance grows.
            wanted: Which flips would matter.
            generator: Source of random starts; None for the default one.
            fast: The network whose gradients are followed (see `SearchArithmetic`); None for that of `known`.
        """
        rows = self.asked(wanted, known.distances).nonzero().squeeze(1)
        if len(rows):
            part = known.part(rows)
            self.search(part, wanted, generator, fast)
            known.put(rows, part)

    @abstractmethod
    def search(
        self, part: NearestFlips, wanted: Wanted, generator: torch.Generator | None, fast: nn.Module | None
    ) -> None:
        """The same for the images that are asked for, at least one.

        Args:
            part: The nearest flips so far; they are replaced by nearer ones.
            wanted: See above.
            generator: See above.
            fast: See above.
        """


@dataclass(frozen=True)
class OneRun(FurtherSearch):
    """One run of a search for every image that is asked for.

    Attributes:
        kind: Its name, for the report.
        start: Where it starts.
        target: What it ascends.
        steps: Number of steps.
    """

    kind: str
    start: Start
    target: Target
    steps: int


@dataclass(frozen=True)
class Round(OneRun):
    """One run of `AimedSearch`.

    Attributes:
        size: First step in units of the usual one.
    """

    size: float = 1.0

    def passes(self, classes: int) -> float:
        """See `FurtherSearch`."""
        return float(self.steps)

    def search(
        self, part: NearestFlips, wanted: Wanted, generator: torch.Generator | None, fast: nn.Module | None
    ) -> None:
        """See `FurtherSearch`."""
        run = FurtherRun(part, wanted.reach, wanted.goal, fast)
        run(*self.target(part), self.start(part, run.radii, generator), self.steps, self.size)


@dataclass(frozen=True)
class AdaptiveRound(OneRun):
    """One run of `AdaptiveSearch`."""

    def passes(self, classes: int) -> float:
        """See `FurtherSearch`."""
        return self.steps + 1.0

    def search(
        self, part: NearestFlips, wanted: Wanted, generator: torch.Generator | None, fast: nn.Module | None
    ) -> None:
        """See `FurtherSearch`."""
        run = FurtherRun(part, wanted.reach, wanted.goal, fast)
        run.adaptively(AdaptiveSearch(self.steps), *self.target(part), self.start(part, run.radii, generator))


def _minus_margin(logits: Tensor, labels: Tensor) -> Tensor:
    return -margin(logits, labels)

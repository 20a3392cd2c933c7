"""Many short runs against every rival class, and long ones against the few that came closest to a flip.

After a minimum-norm attack few images can be flipped within the radius that have not been, and most of them to a class
that neither the image's logits nor the nearest flip tells. A few steps against each rival tell: on a network of
worst-case training, those images were among the 5 % with the closest pair of image and rival after eight steps
(docs/results/distances_effort.md). So pairs are eliminated heat by heat, as successive halving eliminates settings of
an optimiser (Jamieson and Talwalkar 2016, arXiv 1502.07943).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wdro_train.attacks.further_run import FurtherRun
from wdro_train.attacks.nearest_flip_search import minus_margin_to_rival
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.random_search import RandomSearch
from wdro_train.attacks.rounds import FurtherSearch, Wanted, rivals_by_strength
from wdro_train.attacks.starts import Start


@dataclass(frozen=True)
class Heat:
    """One run for every pair of image and rival that is left.

    Attributes:
        share: How many pairs are left, as a share of all pairs.
        steps: Number of steps.
        start: Where it starts.
        size: First step in units of the usual one.
    """

    share: float
    steps: int
    start: Start
    size: float = 3.0


@dataclass(frozen=True)
class RandomHeat:
    """Random search for the images whose pairs came closest.

    Attributes:
        share: How many images, as a share of those that are asked for.
        search: What to do.
        start: Where it starts.
    """

    share: float
    search: RandomSearch
    start: Start


@dataclass(frozen=True)
class Elimination(FurtherSearch):
    """Heats with fewer and fewer pairs of image and rival: the closest of the best run of each pair so far go on.

    Attributes:
        kind: Its name, for the report.
        heats: The first is of all pairs.
        last: What follows the heats, in l_inf.
        rivals: How many rival classes an image has at most, the strongest at the image; AutoAttack aims at nine.
    """

    kind: str
    heats: tuple[Heat, ...]
    last: tuple[RandomHeat, ...] = ()
    rivals: int = 9

    def passes(self, classes: int) -> float:
        """See `FurtherSearch`."""
        rivals = min(self.rivals, classes - 1)
        of_pairs = sum(heat.share * heat.steps for heat in self.heats) * rivals
        return of_pairs + sum(last.share * last.search.passes for last in self.last)

    def search(
        self, part: NearestFlips, wanted: Wanted, generator: torch.Generator | None, fast: nn.Module | None
    ) -> None:
        """See `FurtherSearch`."""
        rivals = rivals_by_strength(part)[:, : self.rivals]
        images, count = rivals.shape
        classes = rivals.T.flatten()
        # Pair k * images + i is image i and its k-th rival: the first heat takes one rival after the other, so that no
        # heat holds more images at a time than were asked for.
        closeness = torch.full((count * images,), -math.inf, dtype=torch.float64, device=part.x.device)
        pairs = torch.arange(count * images, device=part.x.device)
        for number, heat in enumerate(self.heats):
            if number:
                pairs = closeness.argsort(descending=True, stable=True)[: math.ceil(heat.share * count * images)]
            for some in torch.split(pairs, images):
                some = some[wanted.asked(part.distances)[some % images]]
                if len(some):
                    came = _run(part, some % images, classes[some], heat, wanted, generator, fast)
                    closeness[some] = torch.maximum(closeness[some], came)
            closeness[~wanted.asked(part.distances).repeat(count)] = -math.inf
        by_closeness = closeness.view(count, images).amax(0).argsort(descending=True, stable=True)
        for last in self.last:
            some = by_closeness[: math.ceil(last.share * images)]
            some = some[wanted.asked(part.distances)[some]]
            if len(some):
                few = part.part(some)
                run = FurtherRun(few, wanted.reach, wanted.goal, fast)
                run.at_random(last.search, last.start(few, run.radii, generator), generator)
                part.put(some, few)


def _run(
    known: NearestFlips,
    image: Tensor,
    rival: Tensor,
    heat: Heat,
    wanted: Wanted,
    generator: torch.Generator | None,
    fast: nn.Module | None,
) -> Tensor:
    """Run once for pairs of an image and a rival, and keep the nearest flip of each image; returns the closeness."""
    pairs = known.part(image)
    run = FurtherRun(pairs, wanted.reach, wanted.goal, fast)
    start = heat.start(pairs, run.radii, generator)
    closeness = run(minus_margin_to_rival, torch.stack([pairs.y, rival], dim=1), start, heat.steps, heat.size)
    number = torch.arange(len(image), device=image.device)
    none = torch.full((len(known.x),), len(image), device=image.device)
    nearest = known.distances.scatter_reduce(0, image, pairs.distances, "amin")
    winners = (pairs.distances == nearest[image]) & (pairs.distances < known.distances[image])
    winner = none.scatter_reduce(0, image, torch.where(winners, number, len(image)), "amin")
    nearer = (winner < len(image)).nonzero().squeeze(1)
    known.put(nearer, pairs.part(winner[nearer]))
    return closeness

"""Where runs of further search start (see `wdro_train.attacks.rounds`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.theory.ground_norm import per_image

# How long random starts are, in units of the radius. In l_1, where radii of the minimum-norm attack begin far outside,
# starts of length 1 and 10 left 1 to 2 points more of one network than of length 3; in l_2 and l_inf 3 is like 1.
_RANDOM_LENGTHS = {1.0: 3.0}


class Start(Protocol):
    """Where a run starts; points outside the radii are brought inside."""

    def __call__(self, known: NearestFlips, radii: Tensor, generator: torch.Generator | None) -> Tensor:
        """First points.

        Args:
            known: The nearest flips so far.
            radii: Within which distance of each image a flip is looked for, shape [N].
            generator: Source of random starts.

        Returns:
            Images in [0, 1], shape [N, ...].
        """
        ...


@dataclass(frozen=True)
class AtTheImage:
    """The image itself."""

    def __call__(self, known: NearestFlips, radii: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Start`."""
        return known.x


@dataclass(frozen=True)
class AtTheFlip:
    """The nearest flip that is known, which the radius then pulls back to just before the boundary."""

    def __call__(self, known: NearestFlips, radii: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Start`."""
        return known.points


@dataclass(frozen=True)
class AtRandom:
    """A random point: a uniform direction of the cube, as long as the radius, and in l_1 three times as long."""

    def __call__(self, known: NearestFlips, radii: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Start`."""
        return (known.x + _noise(known, radii, generator)).clamp(0, 1)


@dataclass(frozen=True)
class AroundTheFlip:
    """The nearest flip that is known, and from there a random way as `AtRandom` goes from the image."""

    def __call__(self, known: NearestFlips, radii: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Start`."""
        return (known.points + _noise(known, radii, generator)).clamp(0, 1)


@dataclass(frozen=True)
class AtStripes:
    """Each column of pixels at one of the two ends of the radius (l_inf), drawn for each image and channel."""

    def __call__(self, known: NearestFlips, radii: Tensor, generator: torch.Generator | None) -> Tensor:
        """See `Start`."""
        x = known.x
        columns = (*x.shape[:-2], 1, x.shape[-1]) if x.dim() > 2 else x.shape
        up = torch.randint(2, columns, generator=generator, device=x.device)
        return (x + per_image(radii, x) * (2 * up - 1)).clamp(0, 1)


def _noise(known: NearestFlips, radii: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform directions of the cube, of the length of random starts, shape of the images."""
    noise = torch.empty_like(known.x).uniform_(-1, 1, generator=generator)
    lengths = _RANDOM_LENGTHS.get(known.ground.order, 1.0) * radii
    return noise * per_image(lengths / known.ground.distances(noise), noise)

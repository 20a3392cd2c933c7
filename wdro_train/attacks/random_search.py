"""Random search inside a radius of each image, as Square does it: squares of pixels at the ends of the radius.

Gradients tell nothing of a flip behind a kink of the network. A query goes forward only, so that hundreds of them for
the few images that gradients brought closest to a flip cost little (docs/results/distances_effort.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.theory.ground_norm import choose_images, per_image
from wdro_train.theory.losses import margin

# After these shares of the queries the area of a square is halved, as by its authors.
_SHARES = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
_LOOK = 50  # queries from one look at which images have flipped to the next; a look waits for the device


@dataclass(frozen=True)
class RandomSearch:
    """Change one random square of each image after the other, and keep what lowers its margin.

    Square Attack of Andriushchenko et al. 2020 (arXiv 1912.00049) in l_inf: a square takes, in each channel, one of the
    two values at the ends of the radius, and squares become smaller. In other norms there is none.

    Attributes:
        queries: Forward passes of each image.
        area: Share of the image that the first square covers.
    """

    queries: int
    area: float

    @property
    def passes(self) -> float:
        """Passes an image at most, in pairs of a forward and a backward one."""
        return self.queries / 2

    @torch.no_grad()
    def __call__(
        self, flips: NearestFlips, radii: Tensor, start: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Search until an image is flipped; call inside `attack_mode`.

        Args:
            flips: Takes what is found.
            radii: Within which distance to look, float64, shape [N].
            start: First points, shape of the images; they are brought inside the radii.
            generator: Source of random squares; None for the default one.
        """
        if not math.isinf(flips.ground.order):
            return
        rows = torch.arange(len(start), device=start.device)
        part = flips.part(rows)
        radius = per_image(radii, flips.x)
        low, high = (flips.x - radius).clamp(0, 1), (flips.x + radius).clamp(0, 1)
        best = start.clamp(low, high)
        margins = _look(part, best)
        channels = best.shape[1 : max(best.dim() - 2, 1)]
        for query in range(self.queries):
            inside = _squares(best, self._area(query), generator)
            up = _random((len(best), *channels, *[1] * (best.dim() - 1 - len(channels))), 2, generator, best.device)
            point = torch.where(inside, torch.where(up.bool(), high, low), best)
            found = _look(part, point)
            best = choose_images(found <= margins, point, best)
            margins = torch.minimum(found, margins)
            if query % _LOOK == _LOOK - 1:
                open_ = (margins > 0).nonzero().squeeze(1)
                if len(open_) < len(rows):
                    flips.put(rows, part)
                    rows, low, high, best, margins = (t[open_] for t in (rows, low, high, best, margins))
                    part = flips.part(rows)
                if not len(rows):
                    return
        flips.put(rows, part)

    def _area(self, query: int) -> float:
        """Share of the image that a square covers at a query."""
        halvings = sum(query > share * self.queries for share in _SHARES)
        return self.area * 0.5**halvings


def _look(flips: NearestFlips, point: Tensor) -> Tensor:
    """The margins of one point for each image, of which flips are kept, shape [N]."""
    margins = margin(forward(flips.model, point, flips.batch_size), flips.y)
    flips.take(point, flips.ground.between(point, flips.x), ~(margins > 0))
    return margins


def _squares(images: Tensor, area: float, generator: torch.Generator | None) -> Tensor:
    """Which pixels lie in one square of each image, at a random place, boolean, shape [n, 1, ..., H, W].

    Args:
        images: Shape [n, ..., H, W]; vectors [n, W] are images of one row.
        area: Share of the pixels; where the image is lower or narrower than such a square, a rectangle takes its place.
        generator: Source of places.
    """
    whole = images.shape[-2:] if images.dim() > 2 else (1, images.shape[-1])
    pixels = area * math.prod(whole)
    height = min(max(round(max(math.sqrt(pixels), pixels / whole[1])), 1), whole[0])
    sides = height, min(max(round(pixels / height), 1), whole[1])
    inside = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, (side, length) in enumerate(zip(sides, whole, strict=True)):
        first = _random((len(images),), length - side + 1, generator, images.device)
        place = torch.arange(length, device=images.device) - first[:, None]
        within = (place >= 0) & (place < side)
        inside = inside & (within[:, :, None] if axis == 0 else within[:, None, :])
    return inside.reshape(len(images), *[1] * (images.dim() - 3), *(whole if images.dim() > 2 else whole[1:]))


def _random(shape: Sequence[int], below: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Whole numbers below a bound, drawn uniformly."""
    return torch.randint(below, shape, generator=generator, device=device)

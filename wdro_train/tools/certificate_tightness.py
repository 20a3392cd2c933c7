"""How close do certificates come to the exact radii of small networks, and do they ever exceed them?

`python -m wdro_train.tools.certificate_tightness`. Draws random networks of two or three hidden layers on images of
3x3 pixels, finds each image's exact l_inf radius by an attack and mixed-integer programming, and prints for each
certificate the quantiles of its radii as shares of the exact ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wdro_train.attacks import MinimalDistance
from wdro_train.certificates import ExactRobustness, LinearRelaxation
from wdro_train.certificates.exact_questions import Bisection
from wdro_train.certificates.relaxation import BOUNDS
from wdro_train.tools import command_line
from wdro_train.utils import tables
from wdro_train.utils.errors import UserError

_PRECISION = 2e-3  # relative, of the exact radii and of the search for certified ones
_LARGEST = 1.0  # radius at which the ball holds every image of the box
_BUDGET = 60.0  # seconds an image; an image whose interval is still open then has no exact radius and is left out


class Tightness(NamedTuple):
    """A certificate against exact radii.

    Attributes:
        method: Its name.
        lowest: The least of the shares, certified radius / exact radius.
        median: Their median.
        largest: Their largest.
        above: Number of radii above the exact one.
        images: Number of images.
    """

    method: str
    lowest: float
    median: float
    largest: float
    above: int
    images: int


class LeftOut(NamedTuple):
    """Number of images without an exact radius, by the reason.

    Attributes:
        misclassified: At distance zero from a misclassified image, by a tie of logits.
        never_flipped: No image of the box is misclassified.
        undecided: The time was up, or the solver stopped, before the interval was narrow enough.
    """

    misclassified: int
    never_flipped: int
    undecided: int

    def __str__(self) -> str:
        """The counts in a sentence."""
        return (
            f"left out, since they have no exact radius: {self.undecided} images that stayed undecided, "
            f"{self.never_flipped} that nothing flips, {self.misclassified} at distance zero"
        )


def random_networks(count: int, images: int, seed: int) -> Iterator[tuple[nn.Sequential, Tensor, Tensor]]:
    """Random networks with images and the labels that they give them.

    Args:
        count: Number of networks.
        images: Images for each.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        depth, classes = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 4), (3, 6)))
        widths = [9, *torch.randint(8, 13, (depth,), generator=generator).tolist(), classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for inner, outer in pairwise(widths):
            layer = nn.Linear(inner, outer)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(outer, inner, generator=generator) * (2 / inner) ** 0.5)
                layer.bias.copy_(0.3 * torch.randn(outer, generator=generator))
            layers += [layer, nn.ReLU()]
        network = nn.Sequential(*layers[:-1]).eval()
        x, others = (torch.rand(number, 1, 3, 3, generator=generator) for number in (images, 64))
        with torch.no_grad():
            layers[-2].bias.sub_(network(others).mean(0))  # type: ignore[operator]  # so that every class is some image's
            yield network, x, network(x).argmax(1)


def tightness(count: int, images: int, seed: int) -> tuple[list[Tightness], LeftOut]:
    """Every certificate by linear bounds against exact radii.

    Args:
        count: Number of networks.
        images: Images for each.
        seed: Of the draws.

    Returns:
        A row for each certificate, and the images that are in none.
    """
    exact = ExactRobustness(norm=math.inf, budget=_BUDGET, tolerance=_PRECISION)
    shares: dict[str, list[Tensor]] = {method: [] for method in BOUNDS}
    attack = MinimalDistance(norm=math.inf, steps=100, restarts=4, targets=9)
    generator, left_out = torch.Generator().manual_seed(seed), LeftOut(0, 0, 0)
    for network, x, y in random_networks(count, images, seed):
        first = LinearRelaxation(norm=math.inf)(network, x, y)
        flips = attack(network, x, y, generator=generator).distances.double()
        found = exact.narrow(network, x, y, first.radii, flips, Bisection(_LARGEST, _PRECISION))
        known, reasons = _known_exactly(found.low, found.high)
        left_out = LeftOut(*(sum(pair) for pair in zip(left_out, reasons, strict=True)))
        for method in BOUNDS:
            sure = LinearRelaxation(norm=math.inf, method=method, tolerance=_PRECISION)(network, x, y).radii
            shares[method].append((sure / found.high)[known])
    return [_row(method, torch.cat(found)) for method, found in shares.items()], left_out


def _known_exactly(low: Tensor, high: Tensor) -> tuple[Tensor, LeftOut]:
    """Which images have an exact radius, and why the others have none."""
    known = high.isfinite() & (high > 0) & (high - low <= _PRECISION * high)
    misclassified = high == 0
    never_flipped = high.isinf() & (_LARGEST - low <= _PRECISION * _LARGEST)
    undecided = ~(known | misclassified | never_flipped)
    return known, LeftOut(*(int(part.sum()) for part in (misclassified, never_flipped, undecided)))


def _row(method: str, shares: Tensor) -> Tightness:
    if not len(shares):
        raise UserError("no image has an exact radius; give more --networks or --images")
    lowest, median, largest = (float(shares.quantile(q)) for q in (0.0, 0.5, 1.0))
    return Tightness(method, lowest, median, largest, int((shares > 1).sum()), len(shares))


def main() -> None:
    """Print the table."""
    parser = command_line.parser("certificate_tightness", __doc__ or "")
    parser.add_argument("--networks", type=command_line.whole(1), default=50, help="Number of networks.")
    parser.add_argument("--images", type=command_line.whole(1), default=1, help="Images for each network.")
    parser.add_argument("--seed", type=command_line.whole(0), default=0, help="Seed of the draws.")
    given = parser.parse_args()
    rows, left_out = tightness(given.networks, given.images, given.seed)
    body = [[r.method, *(f"{v:.3f}" for v in (r.lowest, r.median, r.largest)), str(r.above)] for r in rows]
    title = f"certified / exact l_inf radius, {rows[0].images} images of {given.networks} random networks"
    tables.show(title, ["certificate", "lowest", "median", "largest", "above"], body, str(left_out))


if __name__ == "__main__":
    command_line.run(main)

"""What may be said about the distribution that the images were drawn from (theory, sections 7 and 12).

For a fixed network and N i.i.d. test images, the worst-case accuracies of the sample P^ and of its distribution P
differ, for all radii and orders at once, by more than w with probability at most alpha,

    w = sqrt(log(2 / alpha) / (2 N)),        one-sided: log(1 / alpha),

by the Dvoretzky-Kiefer-Wolfowitz-Massart inequality on the distribution function of the true distances. For k networks
at once every one gets alpha / k.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from wdro_train.utils.errors import UserError

Sided = Literal["lower", "upper", "two"]


class Interval(NamedTuple):
    """Two numbers between which a third one lies.

    Attributes:
        low: Lower end.
        high: Upper end, at least `low`.
    """

    low: float
    high: float


def band_width(images: int, alpha: float = 0.05, sided: Sided = "two", networks: int = 1) -> float:
    """Half-width w of the band of every one of k networks, which hold jointly.

    Args:
        images: Number N of i.i.d. test images, those of each network: the same ones or others.
        alpha: Probability that the band of any of the networks fails, in (0, 1/2].
        sided: `lower`, `upper` or `two`.
        networks: Number k of networks that one report speaks of.

    Raises:
        UserError: No such probability, side or number.
    """
    if not 0 < alpha <= 0.5:
        raise UserError(f"alpha={alpha:g} is no error probability the inequality covers; choose it in (0, 0.5]")
    if sided not in get_args(Sided):
        raise UserError(f"sided={sided!r} is unknown; choose lower, upper or two")
    if images < 1 or networks < 1:
        raise UserError(f"images={images}, networks={networks}: give at least one of each")
    return math.sqrt(math.log((2 if sided == "two" else 1) * networks / alpha) / (2 * images))


def level_with_certificates(level: float, certificates: Iterable[float]) -> float:
    """The level at which the lower ends hold, where certificates may fail, too: 1 - alpha - sum of beta.

    Args:
        level: Of the band, 1 - alpha.
        certificates: Level 1 - beta of each certificate over the whole set; 1 if it is deterministic.
    """
    return max(0.0, level - sum(1 - one for one in certificates))


@dataclass(frozen=True)
class Band:
    """How far the accuracy on the sampled images may be from that of their distribution, for the whole curve at once.

    The statement is about A_delta of the *true* distances. Distances found by an attack are too long and give an
    accuracy that is too high, so only the upper end may be drawn around them; certified radii are too short, so only
    the lower end may be drawn around theirs (theory, section 12). Otherwise a network without gradients, none of whose
    images an attack can flip, would be called robust with confidence.

    Attributes:
        width: Half-width, in accuracy.
        level: Probability with which the band holds, 1 - alpha, for all `networks` of the report jointly.
        sided: `lower` (A(P) >= A(P^) - width), `upper` (A(P) <= A(P^) + width), or `two`.
        networks: Number of networks whose bands hold jointly.
    """

    width: float
    level: float
    sided: Sided
    networks: int = 1

    def lower_end(self, certified: float) -> float:
        """The least accuracy of the distribution, given a certified one on the sample (0 if the band has no such end).

        Args:
            certified: A lower bound on the accuracy on the sampled images, in [0, 1].
        """
        return 0.0 if self.sided == "upper" else max(0.0, certified - self.width)

    def upper_end(self, attacked: float) -> float:
        """The largest accuracy of the distribution, given what attacks leave on the sample (1 if there is no such end).

        Args:
            attacked: An upper bound on the accuracy on the sampled images, in [0, 1].
        """
        return 1.0 if self.sided == "lower" else min(1.0, attacked + self.width)

    def ratio(self, sample: Interval, clean: float) -> Interval:
        """Where the ratio R_delta(P) = A_delta(P) / A(P) of the distribution lies.

        In the two-sided band [(A_delta - w) / (A + w), (A_delta + w) / (A - w)], with the certified accuracy at its
        lower end and the attacked one at its upper end. Clean accuracy is A_0, so its band is part of the same event,
        and no further error probability is spent. Of a one-sided band the clean accuracy has one end only; the other is
        0 or 1.

        Args:
            sample: Certified and attacked accuracy A_delta on the sampled images.
            clean: Clean accuracy A on them.
        """
        least = self.lower_end(clean)
        high = min(1.0, self.upper_end(sample.high) / least) if least > 0 else 1.0
        return Interval(self.lower_end(sample.low) / self.upper_end(clean), high)

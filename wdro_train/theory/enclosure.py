"""Between which accuracies the truth lies: a certificate from below, an attack from above (theory, sections 5 and 11).

With certified radii r_i <= d_i <= d^_i, the distances that attacks found, for every radius delta and every order p

    A_delta(r) <= A_delta <= A_delta(d^),

as the knapsack grows with each distance. This holds on the images judged, without chance where the certificate is
deterministic, and only if both speak of the same classifier: the radii of a smoothed classifier enclose nothing
together with attacks on the network without noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wdro_train.theory.band import Interval
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError

_ROUNDING = 1e-6  # of a distance: more than the difference of two float32 images loses


@dataclass(frozen=True, eq=False)
class Enclosure:
    """The worst-case accuracy of one network on one set of images, enclosed for every delta and p.

    Attributes:
        certified: From certified radii, 0 where nothing is certified.
        attacked: From the distances at which attacks flipped the same images, in the same order.

    >>> both = Enclosure(RobustnessCurve([0.0, 0.1, 0.3]), RobustnessCurve([0.0, 0.2, math.inf]))
    >>> [round(end, 3) for end in both.accuracy(0.2, p=math.inf)]
    [0.333, 0.333]
    """

    certified: RobustnessCurve
    attacked: RobustnessCurve

    def __post_init__(self) -> None:
        """Refuse curves that are not of the same images.

        Raises:
            UserError: They differ in their number of images.
        """
        if len(self.certified) != len(self.attacked):
            raise UserError(
                f"a certificate of {len(self.certified)} images and an attack on {len(self.attacked)} enclose nothing; "
                "give both of the same images"
            )

    @property
    def contradictions(self) -> int:
        """Number of images that were flipped nearer than they are certified: 0, or one of the two is wrong."""
        return int((self.certified.distances > self.attacked.distances * (1 + _ROUNDING)).sum())

    def accuracy(self, delta: float, p: float) -> Interval:
        """Where A_delta lies.

        Args:
            delta: Radius, >= 0.
            p: Wasserstein order in [1, inf].
        """
        return Interval(self.certified.accuracy(delta, p), self.attacked.accuracy(delta, p))

    def ratio(self, delta: float, p: float) -> Interval:
        """Where R_delta = A_delta / A lies, with A the clean accuracy, which is known; NaN if that is 0.

        Args:
            delta: Radius, >= 0.
            p: Wasserstein order in [1, inf].
        """
        clean = self.attacked.clean_accuracy
        low, high = self.accuracy(delta, p)
        return Interval(low / clean, high / clean) if clean > 0 else Interval(math.nan, math.nan)


def nothing_certified(images: int) -> RobustnessCurve:
    """The certified curve of a network without certificate: A_delta >= 0, with radius 0 for each image.

    Args:
        images: Number of images.
    """
    return RobustnessCurve(np.zeros(images))

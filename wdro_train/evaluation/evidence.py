"""What was measured of one network, before any of it becomes a report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from wdro_train.evaluation.autoattack import ReferenceResult
from wdro_train.evaluation.certified_curve import CertifiedCurve
from wdro_train.evaluation.distances import FoundDistances
from wdro_train.evaluation.exact_intervals import ExactIntervals
from wdro_train.evaluation.first_order import FirstOrderRow, RowWithWorstCase, with_worst_case
from wdro_train.evaluation.passes import Passes
from wdro_train.evaluation.warning_signs import WarningSign
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.enclosure import Enclosure
from wdro_train.theory.robustness_curve import Floats, RobustnessCurve, WorstCase
from wdro_train.utils.written import WrittenRadii


@dataclass(frozen=True)
class Mover:
    """A correct image that the worst case moves.

    Attributes:
        index: Position of the image in the set.
        label: Its label.
        becomes: The class that the minimum-norm attack flips it to.
        distance: Distance to its nearest flip, in the ground norm.
        share: The share of its mass that moves, in (0, 1]; below 1 for at most one image.
    """

    index: int
    label: int
    becomes: int
    distance: float
    share: float


@dataclass(frozen=True, eq=False)
class NetworkEvidence:
    """Everything that was measured of one network on one set, as one distribution.

    Attributes:
        ball: The threat in which the worst case is reported.
        sample: Which images of their split were judged, in words.
        images: Digest of these images and labels, by which two networks are known to have been judged on the same ones.
        found: What the minimum-norm attack found.
        first_order: W-FGSM and W-PGD, a row a loss and ball; empty if not asked for.
        certificate: The certified lower bound; None if not asked for.
        references: What attacks of other authors left; empty if not asked for.
        warnings: Reasons not to believe the numbers.
        exact: Proofs and counterexamples of an exact method; None if not asked for.
        passes: Passes through the network of each measurement, by its name, in the order in which they were made.
        written: How sentences write radii.
    """

    ball: WassersteinBall
    sample: str
    images: str
    found: FoundDistances
    first_order: tuple[FirstOrderRow, ...] = ()
    certificate: CertifiedCurve | None = None
    references: tuple[ReferenceResult, ...] = ()
    warnings: tuple[WarningSign, ...] = ()
    exact: ExactIntervals | None = None
    passes: tuple[tuple[str, Passes], ...] = ()
    written: WrittenRadii = field(default_factory=WrittenRadii)

    @cached_property
    def curve_of_own_attacks(self) -> RobustnessCurve:
        """From the nearest flip that the attacks of this package found, all of which use gradients."""
        return RobustnessCurve.pool([self.found.distances, *(row.flips for row in self.first_order)])

    @cached_property
    def curve_image_by_image(self) -> RobustnessCurve:
        """From the attacks whose distance of an image depends on this image alone, and on random starts of its own.

        What is said of the *attacks'* accuracy on the distribution of the images rests on these (theory, section 12).
        The flips of W-PGD, whose images share one budget, are not in it; nor are those of the exact method, which asks
        for the images that the others leave open.
        """
        return RobustnessCurve.pool([self.found.distances, *map(self._of_all_images, self.references)])

    @cached_property
    def curve_under_the_band(self) -> RobustnessCurve:
        """Around which the upper end for the distribution is drawn: without W-PGD, with the exact method.

        That end holds for any upper bounds of the true distances, however they were found.
        """
        exact = [] if self.exact is None else [self.exact.distances]
        return RobustnessCurve.pool([self.curve_image_by_image.distances, *exact])

    @cached_property
    def curve(self) -> RobustnessCurve:
        """From the nearest flip that any attack found: the tightest upper bound on A_delta for all delta and p."""
        return RobustnessCurve.pool([self.curve_of_own_attacks.distances, self.curve_under_the_band.distances])

    @cached_property
    def enclosure(self) -> Enclosure | None:
        """Certified curve and curve of all attacks, between which the truth on these images lies.

        None if there is no certificate, it speaks of another classifier, or a flip contradicts it.
        """
        if self.certificate is None or not self.certificate.of_the_network or self.contradicted:
            return None
        return Enclosure(self.certificate.curve, self.curve)

    @cached_property
    def enclosure_image_by_image(self) -> Enclosure | None:
        """From radii and distances each of which depends on its image alone, for the normal intervals of differences.

        The exact method chooses by the whole set which images it asks about and where, so neither its proofs nor its
        flips are in it.
        """
        if self.certificate is None or self.enclosure is None:
            return None
        radii = self.certificate.curve if self.exact is None else RobustnessCurve(self.exact.before)
        return Enclosure(radii, self.curve_image_by_image)

    @property
    def contradicted(self) -> bool:
        """Whether an image was flipped nearer than it is certified, so that one of the two is wrong."""
        sure = self.certificate
        return sure is not None and sure.of_the_network and Enclosure(sure.curve, self.curve).contradictions > 0

    @cached_property
    def worst_case(self) -> WorstCase:
        """The worst case in the ball of the threat."""
        return self.curve.worst_case(self.ball.delta, self.ball.p)

    @cached_property
    def rows(self) -> tuple[RowWithWorstCase, ...]:
        """The first-order rows beside the worst case in their ball."""
        return tuple(with_worst_case(self.first_order, self.curve))

    @cached_property
    def median_distance(self) -> float:
        """Median distance of the correct images to their nearest flip; NaN if none is correct."""
        positive = self.curve.distances[self.curve.distances > 0]
        return float(np.median(positive)) if positive.size else math.nan

    @cached_property
    def moved(self) -> tuple[Mover, ...]:
        """The correct images that the worst case moves, nearest first."""
        distances, weights = self.curve.distances, self.worst_case.weights
        moved = np.flatnonzero((weights > 0) & (distances > 0))
        return tuple(
            Mover(
                index=int(i),
                label=int(self.found.labels[i]),
                becomes=self._becomes(int(i)),
                distance=float(distances[i]),
                share=float(weights[i]),
            )
            for i in moved[np.argsort(distances[moved], kind="stable")]
        )

    def _becomes(self, i: int) -> int:
        """The class of an image's nearest flip, by the minimum-norm attack or the exact method."""
        if self.exact is not None and self.exact.distances[i] < self.found.distances[i]:
            return int(self.exact.rivals[i])
        return int(self.found.rivals[i])

    def _of_all_images(self, reference: ReferenceResult) -> Floats:
        """The flips of an attack that was run on the first images only, for the whole set."""
        missing = len(self.found.distances) - len(reference.flips)
        return np.concatenate([reference.flips, np.full(missing, math.inf)])

"""CROWN-IBP: train on linear relaxations of the margins, over the interval bounds of what lies inside the network."""

from __future__ import annotations

from wdro_train.certificates.relaxed_graph import RelaxedGraph
from wdro_train.objectives.certified import CertifiedObjective, LiveBounds


class CrownIbp(CertifiedObjective):
    """Certified training on the better of two bounds in l_inf (CROWN-IBP, Zhang et al. 2020, arXiv 1906.06316).

    One is that of `Ibp`. The other carries each margin f_y - f_j back to the image as an affine function, every ReLU
    replaced by linear bounds over its interval. It is tighter on networks that were not trained for interval bounds,
    which steadies the first epochs, and a step costs a backward pass of bounds for each class more.

    The arguments are those of `CertifiedObjective`.
    """

    def bounds(self) -> LiveBounds:
        """The better of relaxation and intervals; see `CertifiedObjective`."""
        return LiveBounds(RelaxedGraph.live, relaxation_cost)


def relaxation_cost(classes: int) -> int:
    """Forward passes that a bound is worth: two for the intervals, and each class goes through every layer backward.

    Args:
        classes: Of the network.
    """
    return 2 + classes

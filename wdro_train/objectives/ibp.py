"""Interval bound propagation: train the certified accuracy itself, at the cost of about two forward passes a bound."""

from __future__ import annotations

from wdro_train.certificates.interval_network import IntervalNetwork
from wdro_train.objectives.certified import CertifiedObjective, LiveBounds


class Ibp(CertifiedObjective):
    """Certified training on interval bounds in l_inf (IBP, Gowal et al. 2018, arXiv 1810.12715).

    The box [x - eps, x + eps], clipped to [0, 1], goes through the network as center and radius, and the last linear
    layer is merged into the margins f_y - f_j (`wdro_train.certificates.interval_network`). Gradients reach the weights
    through both.

    The arguments are those of `CertifiedObjective`.
    """

    def bounds(self) -> LiveBounds:
        """Interval bounds; see `CertifiedObjective`."""
        return LiveBounds(IntervalNetwork.live, interval_cost)


def interval_cost(classes: int) -> int:
    """Forward passes that an interval bound is worth: center and radius go through every layer.

    Args:
        classes: Of the network, which makes no difference.
    """
    return 2

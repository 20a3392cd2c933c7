"""Interval bound propagation: train the certified accuracy itself, at the cost of about two forward passes a bound."""

from __future__ import annotations

from torch import Tensor, nn

from wdro_train.certificates.interval_network import IntervalNetwork
from wdro_train.objectives.certified import CertifiedObjective, Differences, LiveBounds
from wdro_train.objectives.training_radii import TrainingRadii


class Ibp(CertifiedObjective):
    """Certified training on interval bounds in l_inf (IBP, Gowal et al. 2018, arXiv 1810.12715).

    The box [x - eps, x + eps], clipped to [0, 1], goes through the network as center and radius, and the last linear
    layer is merged into the margins f_y - f_j (`wdro_train.certificates.interval_network`). Gradients reach the weights
    through both.

    Args:
        p: Wasserstein order in [1, inf].
        norm: Ground norm, inf.
        delta: Radius.
        kappa: Weight of the clean loss, in [0, 1].
        radius: How far each image is to be certified; `RadiusOfImage` by default.
    """

    def __init__(
        self, *, p: float, norm: float, delta: float, kappa: float = 0.5, radius: TrainingRadii | None = None
    ) -> None:
        super().__init__(p=p, norm=norm, delta=delta, kappa=kappa, radius=radius)
        self._bounds = LiveBounds(IntervalNetwork.live, interval_cost)

    def differences(self, model: nn.Module, x: Tensor, y: Tensor) -> Differences:
        """Interval bounds; see `CertifiedObjective`."""
        return self._bounds.of(model, x, y)


def interval_cost(classes: int) -> int:
    """Forward passes that an interval bound is worth: center and radius go through every layer.

    Args:
        classes: Of the network, which makes no difference.
    """
    return 2

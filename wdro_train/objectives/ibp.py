"""Interval bound propagation: train the certified accuracy itself, at the cost of about three forward passes."""

from __future__ import annotations

from math import inf

from torch import Tensor, nn

from wdro_train.certificates.interval_network import IntervalNetwork
from wdro_train.objectives.certified import CertifiedObjective, Differences, ReadOnce
from wdro_train.objectives.training_radii import TrainingRadii
from wdro_train.utils.errors import UserError


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
        require_l_inf(self.ball.norm)
        self._networks = ReadOnce(read_intervals)

    def differences(self, model: nn.Module, x: Tensor, y: Tensor) -> Differences:
        """Interval bounds; see `CertifiedObjective`."""
        network = self._networks.of(model)
        return lambda radii: network.differences(x, y, radii)


def read_intervals(model: nn.Module) -> IntervalNetwork:
    """A network that is run on boxes of images, on its present weights.

    Args:
        model: See `IntervalNetwork.live`.
    """
    return IntervalNetwork.live(model)


def require_l_inf(norm: float) -> None:
    """Refuse another ground norm for bounds of boxes.

    Args:
        norm: Should be inf.

    Raises:
        UserError: It is not.
    """
    if norm != inf:
        raise UserError(
            f"interval bounds are for boxes, not for attack.norm={norm:g}; choose attack.norm=inf or another method"
        )

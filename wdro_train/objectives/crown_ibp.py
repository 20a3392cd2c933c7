"""CROWN-IBP: train on linear relaxations of the margins, over the interval bounds of what lies inside the network."""

from __future__ import annotations

from torch import Tensor, nn

from wdro_train.certificates.relaxed_graph import RelaxedGraph
from wdro_train.objectives.certified import CertifiedObjective, Differences, LiveBounds
from wdro_train.objectives.training_radii import TrainingRadii


class CrownIbp(CertifiedObjective):
    """Certified training on the better of two bounds in l_inf (CROWN-IBP, Zhang et al. 2020, arXiv 1906.06316).

    One is that of `Ibp`. The other carries each margin f_y - f_j back to the image as an affine function, every ReLU
    replaced by linear bounds over its interval. It is tighter on networks that were not trained for interval bounds,
    which steadies the first epochs, and a step costs a backward pass of bounds for each class more.

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
        self._bounds = LiveBounds(RelaxedGraph.live, relaxation_cost)

    def differences(self, model: nn.Module, x: Tensor, y: Tensor) -> Differences:
        """The better of relaxation and intervals; see `CertifiedObjective`."""
        return self._bounds.of(model, x, y)


def relaxation_cost(classes: int) -> int:
    """Forward passes that a bound is worth: two for the intervals, and each class goes through every layer backward.

    Args:
        classes: Of the network.
    """
    return 2 + classes

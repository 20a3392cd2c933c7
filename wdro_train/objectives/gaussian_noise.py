"""Training on Gaussian noise, so that the classifier that randomised smoothing makes of the network is accurate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wdro_train.objectives.base import ObjectiveResult
from wdro_train.theory.losses import ce, correct
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError


class GaussianNoise:
    """Minimise E[CE(f(x + e), y)] with e ~ N(0, sigma^2 I) (Cohen et al. 2019, arXiv 1902.02918, section 4).

    The smoothed classifier is certified in l_2 by `RandomizedSmoothing`, whose noise should have the same sigma and, as
    here, leaves [0, 1]. A larger sigma allows larger radii and costs accuracy. The network itself, without noise, is
    not what is certified.

    Args:
        sigma: Standard deviation of the noise, in pixel units, > 0.
    """

    needs_adversary = False

    def __init__(self, *, sigma: float = 0.25) -> None:
        if not 0 < sigma < math.inf:
            raise UserError(f"objective.sigma={sigma:g} is no noise level; choose a positive one, such as 0.25")
        self.sigma = float(sigma)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        importance: Tensor | None = None,
        reducer: Reducer | None = None,
    ) -> ObjectiveResult:
        """Cross-entropy on noisy images, one draw an image; see `Objective`."""
        logits = model(x + self.sigma * torch.randn_like(x))
        noisy = correct(logits.detach(), y).float().mean()
        return ObjectiveResult(ce(logits, y).mean(), None, None, {"noisy_acc": noisy})

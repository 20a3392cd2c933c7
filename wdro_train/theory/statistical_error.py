"""The worst case over statistical error: which weights of a sample raise its mean loss most, within a relative entropy.

A sample of n images is not the distribution it was drawn from. Weights a that are not far from those of the sample,
KL(P^ || a) = (1/n) sum_i log((1/n) / a_i) <= r, describe distributions that the sample may well have come from (Van
Parys, Mohajerin Esfahani, Kuhn 2021, arXiv 1704.04118; theory, section 9).
"""

from __future__ import annotations

import torch
from torch import Tensor

# log e is sought in this interval, by halving: at e = exp(-700) a quotient s / e is still a float64 number, and at
# exp(40) the relative entropy is below 1e-34. 70 halvings leave less than one unit in the last place.
_LOWEST, _HIGHEST, _HALVINGS = -700.0, 40.0, 70


def worst_weights(losses: Tensor, radius: float) -> Tensor:
    """The weights of the largest weighted mean loss within a relative entropy of the sample, times n.

    max over a >= 0, sum a = 1, KL(P^ || a) <= r of sum_i a_i l_i. By the conditions of Karush, Kuhn and Tucker
    n a_i is proportional to 1 / (eta - l_i) with an eta above the largest loss. With s_i = (max l - l_i) / (max l -
    min l) and eta - l_i proportional to e + s_i the entropy is log mean 1 / (1 + s / e) + mean log(1 + s / e), which
    falls in e, so that e is found by halving an interval. No value is asked of a device.

    Args:
        losses: Of all images of the sample, finite, shape [n].
        radius: r >= 0, in nats; 0 leaves all weights equal.

    Returns:
        Shape [n], float64, with mean 1; the relative entropy is at most r, up to rounding.
    """
    losses = losses.double()
    drop = losses.amax() - losses
    spread = drop.amax()
    s = drop / torch.where(spread > 0, spread, 1.0)
    low, high = (torch.full_like(spread, end) for end in (_LOWEST, _HIGHEST))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        ratio = s * (-middle).exp()
        entropy = (1 / (1 + ratio)).mean().log() + ratio.log1p().mean()
        low, high = torch.where(entropy > radius, middle, low), torch.where(entropy > radius, high, middle)
    weights = 1 / (1 + s * (-high).exp())
    return weights / weights.mean() if radius > 0 else torch.ones_like(weights)

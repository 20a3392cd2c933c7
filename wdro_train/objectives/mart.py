"""MART: minimise a loss that treats images the network is unsure of with more care (Wang et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wdro_train.objectives.base import ObjectiveResult, checked_weight, weighted_mean
from wdro_train.theory.losses import ce, kl_divergence
from wdro_train.utils.distributed import Reducer


class Mart:
    """Minimise E[BCE(f(x'), y)] + beta E[KL(f(x) || f(x')) (1 - f_y(x))], x' the attack's image of x.

    BCE = -log f_y(x') - log(1 - max over j != y of f_j(x')), f the probabilities: the runner-up class is pushed down
    as well, and the distance between clean and perturbed predictions counts more where the clean one is less sure of
    the label. Wang et al. 2020 (Improving adversarial robustness requires revisiting misclassified examples), whose
    beta of 5 is the default.

    Args:
        beta: Weight of the KL term, >= 0.
    """

    needs_adversary = True

    def __init__(self, beta: float = 5.0) -> None:
        self.beta = checked_weight(beta)

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
        """Both images in one forward pass, so that BatchNorm sees one batch; see `Objective`."""
        clean, adv = model(torch.cat([x, x_adv.to(x.dtype)])).chunk(2)
        rival = adv.float().softmax(1).scatter(1, y[:, None], 0.0).amax(1)
        # A rival that is certain in floating point must not make the loss infinite: -log(1e-6) = 13.8 nats is the most.
        boosted = ce(adv, y) - torch.log1p(-rival.clamp(max=1 - 1e-6))
        own = clean.float().softmax(1).gather(1, y[:, None]).squeeze(1)
        kl = kl_divergence(clean, adv) * (1 - own)
        loss = weighted_mean(boosted + self.beta * kl, importance)
        terms = {"bce": boosted.detach().mean(), "kl": kl.detach().mean()}
        return ObjectiveResult(loss, clean, adv, terms)

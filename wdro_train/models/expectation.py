"""Networks with random layers, judged by the mean of their logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wdro_train.utils.contract import logits_of
from wdro_train.utils.errors import UserError


class ExpectedLogits(nn.Module):
    """The mean of the logits over n forward passes (expectation over transformation, Athalye et al. 2018).

    A randomised network can look robust because every look at it is another network; attacks and accuracy should
    then see its expectation. The cost is n times.

    Args:
        model: Maps images to logits, differently each time it is called.
        n: Number of forward passes, at least 1.
    """

    def __init__(self, model: nn.Module, n: int) -> None:
        super().__init__()
        if n < 1:
            raise UserError(f"expectation={n} averages nothing; choose at least 1")
        self.model, self.n = model, n

    def forward(self, x: Tensor) -> Tensor:
        """Mean logits, shape [B, m]."""
        return torch.stack([logits_of(self.model(x), len(x)) for _ in range(self.n)]).mean(0)

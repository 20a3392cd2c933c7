"""The mean over several passes of a randomised network."""

import pytest
import torch
from torch import nn

from wdro_train.models import ExpectedLogits
from wdro_train.utils.errors import UserError


class Alternating(nn.Module):
    """Returns another multiple of fixed logits at each call, in an object as transformers' networks do."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return {"logits": self.calls * torch.tensor([[1.0, -2.0, 3.0]]).expand(len(x), 3)}


def test_logits_are_averaged_over_the_passes():
    network = Alternating()
    logits = ExpectedLogits(network, 3)(torch.zeros(4, 1, 2, 2))
    assert network.calls == 3
    torch.testing.assert_close(logits, torch.tensor([[2.0, -4.0, 6.0]]).expand(4, 3))


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(UserError, match="expectation=0 averages nothing"):
        ExpectedLogits(nn.Identity(), 0)

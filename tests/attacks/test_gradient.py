"""The gradient of a loss with respect to the images is a tensor of its own, which attacks may write to."""

import pytest
import torch
from torch import nn

from wdro_train.attacks import WPGD, MinimalDistance
from wdro_train.attacks.gradient import input_gradient
from wdro_train.theory.losses import margin


class ItsOwnMemory(torch.autograd.Function):
    """A linear logit whose backward pass returns the network's weights themselves."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return (x * weight).flatten(1).sum(1)

    @staticmethod
    def backward(ctx, _):
        return ctx.weight, None


class Sharing(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight  # no buffer, which an attack would put back

    def forward(self, x):
        score = ItsOwnMemory.apply(x, self.weight[: len(x)])
        return torch.stack([0 * score, score], 1)


class Summing(nn.Module):
    """Logits whose gradients are one number, expanded to all pixels."""

    def forward(self, x):
        score = x.flatten(1).sum(1)
        return torch.stack([0 * score, score - 8], 1)


@pytest.mark.parametrize(
    "attack",
    [WPGD(p=2, norm="inf", delta=0.1, steps=3, random_start=False, keep="cheapest"), MinimalDistance(norm=2, steps=3)],
)
def test_attacks_write_to_no_memory_of_the_network(attack):
    torch.manual_seed(0)
    x = torch.rand(6, 1, 4, 4)
    weight = torch.randn(6, 1, 4, 4)
    model = Sharing(weight.clone())
    attack(model, x, torch.zeros(6, dtype=torch.int64))
    assert 0 < (model(x).argmax(1) == 0).sum() < 6  # some are finished from the start
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize("keep", ["last", "cheapest"])
def test_attacks_write_to_expanded_gradients(keep):
    x, y = torch.rand(6, 1, 4, 4), torch.zeros(6, dtype=torch.int64)
    here = input_gradient(Summing(), x, y, margin)
    here.gradient.mul_(torch.arange(6.0).view(6, 1, 1, 1))
    moved = WPGD(p=2, norm="inf", delta=0.1, steps=3, keep=keep)(Summing(), x, y)
    assert (moved.x_adv >= x - 0.1).all()

"""Training on Gaussian noise: its loss against a closed form, and what smoothing certifies afterwards."""

import math

import pytest
import torch
from oracles import random_batch
from torch import nn
from torch.nn import functional

from wdro_train.certificates import RandomizedSmoothing
from wdro_train.objectives import GaussianNoise
from wdro_train.utils.errors import UserError


def test_the_loss_is_that_of_noisy_images():
    """Of logits s (1, -1) with s = <w, x>, E CE = E log(1 + exp(-2 (s + sigma ||w|| g))) for a standard normal g."""
    weight = torch.tensor([0.3, -0.2, 0.5, 0.1])
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([weight, -weight]))
    x = torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(0)).expand(200_000, 1, 2, 2)
    torch.manual_seed(0)
    result = GaussianNoise(sigma=0.7)(net, x, x, torch.zeros(len(x), dtype=torch.long))
    s, spread = float(x[0].flatten() @ weight), 0.7 * float(weight.norm())
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    expected = torch.trapezoid(density * functional.softplus(-2 * (s + spread * grid)), grid)
    assert result.loss.item() == pytest.approx(float(expected), abs=3e-3)
    flipped = 0.5 * math.erfc(s / spread / math.sqrt(2))
    assert result.terms["noisy_acc"].item() == pytest.approx(1 - flipped, abs=5e-3)
    assert result.clean_logits is None
    assert result.adv_logits is None


@pytest.mark.slow
@pytest.mark.covers
def test_a_network_that_was_trained_on_noise_is_certified_farther():
    """Two classes, one blob each; a weak feature separates them without noise and does not with it."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.rand(200, 1, 4, 4, generator=generator)
    x[:, :, 0, 0] = 0.5 + 0.02 * (2 * y[:, None] - 1)
    x[:, :, 2:] = (0.3 + 0.4 * y.view(-1, 1, 1, 1)) + 0.2 * torch.rand(200, 1, 2, 4, generator=generator) - 0.1
    smoothing = RandomizedSmoothing(sigma=0.5, total_images=200, n=1000)
    radii = []
    for sigma in (1e-6, 0.5):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        with torch.no_grad():
            net[1].weight[:, 0] = torch.tensor([-30.0, 30.0])
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            GaussianNoise(sigma=sigma)(net, x, x, y).loss.backward()
            optimizer.step()
        radii.append(smoothing(net, x, y, generator=torch.Generator().manual_seed(1)).radii.mean())
    assert radii[1] > 1.5 * radii[0]


@pytest.mark.parametrize("sigma", [0, -1, math.inf, math.nan])
def test_what_is_no_noise_is_refused(sigma):
    with pytest.raises(UserError, match="is no noise level"):
        GaussianNoise(sigma=sigma)


def test_the_model_is_run_once():
    x, y = random_batch(4)
    seen = []

    class Net(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :5]

    GaussianNoise(sigma=0.5)(Net(), x, x, y)
    assert len(seen) == 1
    assert ((seen[0] < 0) | (seen[0] > 1)).any()

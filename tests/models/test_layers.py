"""The normalisation inside every network."""

import copy

import pytest
import torch

from wdro_train.models import Normalize, normalized
from wdro_train.utils.errors import UserError


def test_normalize_by_channel():
    x = torch.rand(2, 3, 4, 4)
    out = Normalize([0.1, 0.2, 0.3], [1.0, 2.0, 4.0])(x)
    for k in range(3):
        assert torch.allclose(out[:, k], (x[:, k] - 0.1 * (k + 1)) / 2**k)


def test_one_number_is_for_all_channels():
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(Normalize(0.5, 0.25)(x), Normalize([0.5] * 3, [0.25] * 3)(x))
    assert torch.equal(Normalize([0.1, 0.2, 0.3], 0.25)(x), Normalize([0.1, 0.2, 0.3], [0.25] * 3)(x))


def test_a_network_is_normalised_once_and_for_its_channels():
    network = torch.nn.Flatten()
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(normalized(network, 0.5, 0.25, 3)(x), (x - 0.5).flatten(1) / 0.25)
    with pytest.raises(UserError, match="begins with its own normalisation"):
        normalized(normalized(network, 0.5, 0.25), 0.5, 0.25)
    with pytest.raises(UserError, match="for 3 channels, but the images have 1"):
        normalized(network, [0.1, 0.2, 0.3], [1, 1, 1], 1)


@pytest.mark.parametrize(
    ("mean", "std"),
    [([0.5], [0.0]), ([0.5], -1.0), (0.5, [float("nan")]), (float("inf"), 1), ([0.5, 0.5], [1]), ([], [])],
)
def test_normalize_refuses(mean, std):
    with pytest.raises(UserError, match="one mean and one positive std per channel"):
        Normalize(mean, std)


def test_normalisation_moves_but_is_not_saved():
    layer = Normalize([0.5], [0.25])
    assert not layer.state_dict()
    moved = copy.deepcopy(layer).to("meta", torch.float64)
    assert moved.mean.device.type == moved.std.device.type == "meta"
    assert moved.mean.dtype == moved.std.dtype == torch.float64

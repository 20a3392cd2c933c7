"""The normalisation inside every network."""

import copy

import pytest
import torch

from wdro_train.models import Normalize
from wdro_train.utils.errors import UserError


def test_normalize_by_channel():
    x = torch.rand(2, 3, 4, 4)
    out = Normalize([0.1, 0.2, 0.3], [1.0, 2.0, 4.0])(x)
    for k in range(3):
        assert torch.allclose(out[:, k], (x[:, k] - 0.1 * (k + 1)) / 2**k)


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.0]), ([0.5], [-1.0]), ([0.5], [float("nan")]), ([0.5, 0.5], [1])])
def test_normalize_refuses(mean, std):
    with pytest.raises(UserError, match="one mean and one positive std per channel"):
        Normalize(mean, std)


def test_normalisation_moves_but_is_not_saved():
    layer = Normalize([0.5], [0.25])
    assert not layer.state_dict()
    moved = copy.deepcopy(layer).to("meta", torch.float64)
    assert moved.mean.device.type == moved.std.device.type == "meta"
    assert moved.mean.dtype == moved.std.dtype == torch.float64

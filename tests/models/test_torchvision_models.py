"""Networks of torchvision, for images of any size and number of channels."""

import pytest
import torch
from torch import nn

from wdro_train.models import (
    torchvision_model,
)
from wdro_train.utils.errors import UserError


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision(name, channels):
    kwargs = {"num_classes": 7, "mean": [0.5] * channels, "std": [0.2] * channels}
    model = torchvision_model((channels, 32, 32), **kwargs, name=name, small_stem=True).eval()
    assert model(torch.rand(2, channels, 32, 32)).shape == (2, 7)
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    assert (first.kernel_size, first.stride, first.in_channels) == ((3, 3), (1, 1), channels)


def test_torchvision_options_and_refusals():
    kwargs = {"num_classes": 4, "mean": [0.0] * 3, "std": [1.0] * 3}
    narrow, wide = (
        torchvision_model((3, 32, 32), **kwargs, name="mobilenet_v3_small", options={"width_mult": width})
        for width in (0.25, 1.0)
    )
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in wide.parameters()) / 3
    with pytest.raises(UserError, match=r"model.name=resnet19 is not a classifier of torchvision"):
        torchvision_model((3, 32, 32), **kwargs, name="resnet19")
    with pytest.raises(UserError, match=r"model.small_stem=true is not for vit_b_16"):
        torchvision_model((3, 224, 224), **kwargs, name="vit_b_16", small_stem=True)
    with pytest.raises(UserError, match=r"resnet18 does not take model.options=.'wide': 3. .*unexpected"):
        torchvision_model((3, 32, 32), **kwargs, name="resnet18", options={"wide": 3})

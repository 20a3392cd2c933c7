"""Networks of timm."""

import pytest
import torch

from wdro_train.models import (
    timm_model,
)
from wdro_train.utils.errors import UserError


@pytest.mark.slow
def test_timm_normalises_as_its_configuration_says():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm_model((3, 32, 32), 7, "test_resnet").eval()
    config = timm.create_model("test_resnet").pretrained_cfg
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(model(x), model[1]((x - mean) / std))
    assert timm_model((1, 32, 32), 7, "test_resnet").eval()(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(UserError, match=r"model.name=resnet19 is not a network of timm"):
        timm_model((3, 32, 32), 7, "resnet19")

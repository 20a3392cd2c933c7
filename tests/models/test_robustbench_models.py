"""Networks of RobustBench's model zoo, and the architectures that are ours."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from wdro_train.models import (
    load_weights,
    preact_resnet18,
    robustbench_model,
    wide_resnet,
)
from wdro_train.utils.errors import UserError

COLOUR = {"shape": (3, 32, 32), "mean": [0.0] * 3, "std": [1.0] * 3}
# Not `importorskip`: as it is published, the package cannot be imported without help.
needs_robustbench = pytest.mark.skipif(find_spec("robustbench") is None, reason="robustbench is not installed")


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@needs_robustbench
@pytest.mark.parametrize("net", ["wide", "preact", "preact_bn"])
def test_architectures_are_those_of_robustbench(net, tmp_path):
    """Same names, same shapes, and with the same weights the same logits."""
    with pytest.raises(UserError, match=r"no network model.name=Nobody2020 for cifar10"):
        robustbench_model(10, "Nobody2020")  # makes the package importable
    from robustbench.model_zoo.architectures.resnet import PreActBlock, PreActResNet
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    torch.manual_seed(0)
    if net == "wide":
        theirs = WideResNet(depth=16, widen_factor=2, sub_block1=True)
        ours = wide_resnet(**COLOUR, num_classes=10, depth=16, width=2)
    else:
        final = net == "preact_bn"
        theirs = PreActResNet(PreActBlock, [2, 2, 2, 2], bn_before_fc=final)
        ours = preact_resnet18(**COLOUR, num_classes=10, final_bn=final)
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "theirs.pt")
    load_weights(ours, tmp_path / "theirs.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)


@needs_robustbench
def test_robustbench_reads_its_cache_layout(tmp_path):
    """Through the package's own loader, from `<root>/cifar10/Linf/<name>.pt`."""
    torch.manual_seed(0)
    random = robustbench_model(10, "Wong2020Fast", pretrained=False)
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    torch.save({f"module.{name}": value for name, value in random.state_dict().items()}, folder / "Wong2020Fast.pt")
    loaded = robustbench_model(10, "Wong2020Fast", root=str(tmp_path))
    assert same(loaded, random)
    (folder / "Wong2020Fast.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"Wong2020Fast could not be loaded from .*Wong2020Fast.pt"):
        robustbench_model(10, "Wong2020Fast", root=str(tmp_path))

"""The networks for small images: logits, gradients and the normalisation in front."""

import pytest
import torch
from torch import nn

from wdro_train.models import Normalize, resnet18, small_cnn
from wdro_train.utils.errors import UserError

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224)]


def build(make, shape, **kwargs):
    torch.manual_seed(0)
    return make(shape, 7, mean=[0.4] * shape[0], std=[0.3] * shape[0], **kwargs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", [small_cnn, resnet18])
def test_logits_and_gradients(make, shape):
    model = build(make, shape)
    x = torch.rand(2, *shape, requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("make", [small_cnn, resnet18])
def test_normalisation_comes_first(make):
    """The model on x is its rest on (x - mean) / std, whatever the rest is."""
    model = build(make, (3, 32, 32)).eval()
    assert isinstance(model[0], Normalize)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), model[1:]((x - 0.4) / 0.3))


@pytest.mark.parametrize(
    ("shape", "small_stem", "stride"),
    [((1, 8, 8), None, 1), ((3, 64, 64), None, 1), ((3, 65, 65), None, 2), ((1, 224, 224), None, 2),
     ((3, 32, 32), False, 2), ((3, 224, 224), True, 1)],
)  # fmt: skip
def test_resnet_stem(shape, small_stem, stride):
    network = build(resnet18, shape, small_stem=small_stem)[1]
    assert network.conv1.stride == (stride, stride)
    assert network.conv1.in_channels == shape[0]
    assert isinstance(network.maxpool, nn.Identity) == (stride == 1)


def test_small_cnn_with_a_smooth_nonlinearity():
    """ELU's derivative is continuous: the gradient along a line jumps with ReLU, and with ELU moves in small steps."""
    line = torch.linspace(0, 1, 4001)[:, None, None, None] * torch.rand(1, 1, 8, 8)
    jumps = {}
    for activation in ("relu", "elu"):
        model = build(small_cnn, (1, 8, 8), activation=activation)
        x = line.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
        jumps[activation] = (gradient.diff(dim=0).flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1).max()).max()
    assert jumps["elu"] < 2e-3 < 0.03 < jumps["relu"]
    assert torch.equal(build(small_cnn, (1, 8, 8))(line[:5]), build(small_cnn, (1, 8, 8), activation="relu")(line[:5]))
    with pytest.raises(UserError, match=r"model\.activation='gelu' is unknown; choose relu or elu"):
        build(small_cnn, (1, 8, 8), activation="gelu")


def test_small_cnn_width_and_sides():
    assert build(small_cnn, (1, 8, 8), width=5)[1].out_channels == 5
    for shape in ((1, 30, 28), (1, 28, 30)):
        with pytest.raises(UserError, match=f"divisible by 4, got {shape[1]}x{shape[2]}; use model=resnet18"):
            build(small_cnn, shape)

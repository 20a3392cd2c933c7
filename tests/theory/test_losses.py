import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wdro_train.theory.losses import LOSSES, ce, correct, dlr, margin, redlr, resolve_loss
from wdro_train.utils.errors import UserError

LABELS = torch.arange(4)
AWKWARD = {
    "constant": torch.zeros(4, 4),
    "constant, large": torch.full((4, 4), 1e20),
    "tie at the top": torch.tensor([[2.0, 2.0, 1.0, 0.0]] * 4),
    "z1 = z3": torch.tensor([[2.0, 2.0, 2.0, 0.0]] * 4),
    "z1 = z3 to the last bit": torch.tensor([[1.0, 1.0 + 1.2e-7, 1.0, 0.0]] * 4),
    "tie below": torch.tensor([[3.0, 1.0, 1.0, 1.0]] * 4),
    "tiny": torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 4) * 1e-30,
    "huge": torch.tensor([[1.0, -2.0, 3.0, 4.0]] * 4) * 1e30,
    "half precision": torch.tensor([[60000.0, -60000.0, 1.0, 2.0]] * 4).half(),
}


def textbook(z, y):
    """CE, DLR and ReDLR of one image, straight from the definitions."""
    z = np.asarray(z, dtype=np.float64)
    others, top = np.delete(z, y), np.sort(z)[::-1]
    ratio = -(z[y] - others.max()) / (top[0] - top[2])
    return np.log(np.exp(z - z.max()).sum()) + z.max() - z[y], ratio, min(ratio, 0.0)


def test_values():
    z = torch.randn(200, 7, generator=torch.Generator().manual_seed(0)) * 5
    y = torch.arange(200) % 7
    expected = torch.tensor([textbook(a, b) for a, b in zip(z.numpy(), y.tolist(), strict=True)])
    for column, loss in enumerate((ce, dlr, redlr)):
        torch.testing.assert_close(loss(z, y).double(), expected[:, column], rtol=1e-5, atol=1e-6)
    assert redlr(z, y).min() >= -1
    assert redlr(z, y).max() == 0
    assert torch.equal(correct(z, y), z.argmax(1) == y)


@pytest.mark.parametrize("logits", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_finite_at_ties_and_extremes(logits, loss):
    z = logits.clone().requires_grad_()
    value = loss(z, LABELS)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("logits", AWKWARD.values(), ids=AWKWARD)
def test_redlr_is_flat_off_the_correct_set(logits):
    z = logits.clone().requires_grad_()
    value = redlr(z, LABELS)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    wrong = ~correct(logits, LABELS)
    assert wrong.sum() >= 3
    assert (value[wrong] == 0).all()
    assert (gradient[wrong] == 0).all()
    assert (value <= 0).all()


def test_redlr_has_the_gradient_of_dlr_on_the_correct_set():
    z = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    y = z.argmax(1)
    assert (torch.autograd.grad(redlr(z, y).sum(), z)[0] == torch.autograd.grad(dlr(z, y).sum(), z)[0]).all()
    assert torch.autograd.gradcheck(lambda u: redlr(u, y), (z,))


def test_a_tie_and_a_nan_are_wrong():
    z = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [float("nan"), 1.0, 0.0], [2.0, float("nan"), 0.0]])
    assert correct(z, torch.zeros(4, dtype=torch.long)).tolist() == [False, True, False, False]
    assert margin(z[:2], torch.zeros(2, dtype=torch.long)).tolist() == [0.0, 1.0]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.float64, (3, 5), elements=st.floats(-5, 5)),
    st.floats(-100, 100),
    st.floats(1e-3, 1e3),
)
def test_dlr_ignores_shift_and_scale(z, shift, scale):
    z, y = torch.tensor(z), torch.tensor([0, 2, 4])
    top = z.topk(3).values
    clear = (top[:, 0] - top[:, 2]) > 1e-3
    torch.testing.assert_close(dlr(scale * z + shift, y)[clear], dlr(z, y)[clear], rtol=1e-5, atol=1e-6)


def two_classes(z, y):
    """DLR as it is written for three classes, with a third logit one below the second."""
    with_third = torch.cat([z, z.amin(1, keepdim=True) - 1], 1)
    return dlr(with_third, y)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(hnp.arrays(np.float64, (6, 2), elements=st.floats(-50, 50)), st.floats(-100, 100))
def test_two_classes(z, shift):
    z, y = torch.tensor(z), torch.arange(6) % 2
    value, right = dlr(z, y), correct(z, y)
    torch.testing.assert_close(value, two_classes(z, y), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dlr(z + shift, y), value, rtol=1e-9, atol=1e-9)
    assert ((value < 0) == right).all()
    order = margin(z, y).argsort(descending=True)
    assert (value[order].diff() >= 0).all()
    rectified = redlr(z, y)
    assert (rectified >= -right.double()).all()  # so A_delta >= -V_ReDLR(delta)
    assert (rectified[~right] == 0).all()  # so W(0) = 0
    assert torch.equal(rectified[right], value[right])


@pytest.mark.parametrize("distance", [0.0, 1e-6, 0.1, 1.0, 30.0, 1e4, 1e8, 1e15])
def test_two_classes_have_a_slope_however_sure_the_network_is(distance):
    z = torch.tensor([[distance, 0.0], [0.0, distance]], requires_grad=True)
    labels = torch.tensor([0, 0])
    (gradient,) = torch.autograd.grad(dlr(z, labels).sum(), z)
    slope = 1 / (1 + distance) ** 2
    expected = torch.tensor([[-slope, slope], [-slope, slope]])
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)
    wide = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda u: dlr(u, torch.arange(20) % 2), (wide,))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30, 3e38])
def test_two_classes_at_extremes(loss, size):
    z = size * torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], requires_grad=True)
    z.retain_grad()
    value = loss(z, torch.zeros(3, dtype=torch.uint8))
    assert not value.isnan().any()
    (gradient,) = torch.autograd.grad(value.clamp(max=1e30).sum(), z)
    assert gradient.isfinite().all()


def test_resolve_loss():
    assert resolve_loss("ReDLR") is redlr
    assert resolve_loss(dlr) is dlr
    with pytest.raises(UserError, match="unknown loss 'hinge'; choose one of ce, dlr, redlr"):
        resolve_loss("hinge")


@pytest.mark.parametrize("classes", [2, 3])
def test_a_tie_is_zero_without_a_sign(classes):
    logits = torch.tensor([[1.0, 1.0, 0.0]])[:, :classes]
    assert math.copysign(1.0, dlr(logits, torch.tensor([0])).item()) == 1.0

import copy
import math

import pytest
import torch
from oracles import conjugate, on_ranks, random_batch, small_network
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional

from wdro_train.attacks import WFGSM
from wdro_train.objectives import Adversarial, FirstOrderPenalty, Standard, StatisticallyRobust, WTrades
from wdro_train.utils.errors import UserError

INF = math.inf


def gradients(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])


def batch(count=12, seed=0):
    x, y = random_batch(count, seed)
    return x, WFGSM(p=2, norm=2, delta=0.5)(small_network(), x, y).x_adv, y


def test_standard_and_adversarial():
    model, (x, x_adv, y) = small_network(), batch()
    for objective, images in ((Standard(), x), (Adversarial(), x_adv)):
        result = objective(model, x, x_adv, y)
        expected = -model(images).log_softmax(1)[torch.arange(12), y].mean()
        torch.testing.assert_close(result.loss, expected)
        torch.testing.assert_close(gradients(result.loss, model), gradients(expected, model))
    assert Standard()(model, x, x, y).adv_logits is None
    assert Adversarial()(model, x, x_adv, y).clean_logits is None
    assert (Standard().needs_adversary, Adversarial().needs_adversary) == (False, True)


def test_w_trades():
    model, (x, x_adv, y) = small_network(), batch()
    result = WTrades(beta=2.5)(model, x, x_adv, y)
    natural = functional.cross_entropy(model(x), y)
    clean, adv = model(x).softmax(1), model(x_adv).softmax(1)
    kl = (clean * (clean / adv).log()).sum(1).mean()
    assert kl > 0.001
    torch.testing.assert_close(result.loss, natural + 2.5 * kl, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        gradients(result.loss, model), gradients(natural + 2.5 * kl, model), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close((result.terms["ce"], result.terms["kl"]), (natural.detach(), kl.detach()))
    torch.testing.assert_close((result.clean_logits, result.adv_logits), (model(x), model(x_adv)))


def test_statistically_robust():
    """The value is the dual's, and the gradient that of the value as it stands, by finite differences."""
    model, (x, x_adv, y) = small_network().double(), batch()
    model = WithFloatInput(model)
    objective = StatisticallyRobust(kl_radius=0.3)
    result = objective(model, x, x_adv, y)
    losses = functional.cross_entropy(model(x_adv), y, reduction="none").detach()

    def dual(log_gap):
        eta = losses.max() + math.exp(log_gap)
        return (eta - math.exp(-0.3) * (eta - losses).log().mean().exp()).item()

    exact = minimize_scalar(dual, bounds=(-20, 10), method="bounded", options={"xatol": 1e-9}).fun
    assert result.loss.item() == pytest.approx(exact, rel=1e-6)
    assert result.loss > losses.mean() + 0.1
    assert result.terms["ce"].item() == pytest.approx(losses.mean().item())
    assert result.clean_logits is None
    weight = model.inner[1].weight
    (gradient,) = torch.autograd.grad(result.loss, weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
    sides = []
    for step in (1e-4, -1e-4):
        moved = copy.deepcopy(model)
        moved.inner[1].weight.data += step * direction
        sides.append(objective(moved, x, x_adv, y).loss.item())
    assert (sides[0] - sides[1]) / 2e-4 == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_statistically_robust_logs_the_same_weight_on_every_rank():
    model, (x, x_adv, y) = small_network(), batch()
    objective = StatisticallyRobust(kl_radius=0.3)

    def run(reducer, copy):
        mine = slice(reducer.rank, None, 2)
        return objective(copy, x[mine], x_adv[mine], y[mine], reducer=reducer).terms["largest_weight"]

    whole = objective(model, x, x_adv, y).terms["largest_weight"]
    for largest in on_ranks(2, run, model):
        torch.testing.assert_close(largest, whole)


def test_statistically_robust_limits():
    model, (x, x_adv, y) = small_network(), batch()
    plain = Adversarial()(model, x, x_adv, y).loss
    same = StatisticallyRobust(kl_radius=0)(model, x, x_adv, y).loss
    torch.testing.assert_close(gradients(same, model), gradients(plain, model))
    importance = torch.linspace(0, 2, 12)
    weighed = StatisticallyRobust(kl_radius=0)(model, x, x_adv, y, importance=importance).loss
    torch.testing.assert_close(weighed, Adversarial()(model, x, x_adv, y, importance=importance).loss)
    for radius in (-1, math.inf, math.nan):
        with pytest.raises(UserError, match=r"objective\.kl_radius=.* is no relative entropy"):
            StatisticallyRobust(kl_radius=radius)


def test_w_trades_limits():
    model, (x, x_adv, y) = small_network(), batch()
    torch.testing.assert_close(WTrades(beta=0)(model, x, x_adv, y).loss, functional.cross_entropy(model(x), y))
    same = WTrades(beta=9)(model, x, x, y)
    assert same.terms["kl"].abs() < 1e-7
    torch.testing.assert_close(gradients(same.loss, model), gradients(functional.cross_entropy(model(x), y), model))
    for beta in (-1, math.nan):
        with pytest.raises(UserError, match=r"objective\.beta=.* is not a weight"):
            WTrades(beta=beta)


def test_w_trades_is_finite_when_sure():
    sure = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    nn.init.constant_(sure[1].weight, 0)
    sure[1].bias.data = torch.tensor([1e4, 0, 0, 0, -1e4])
    x, x_adv, y = batch()
    result = WTrades()(sure, x, x_adv, y)
    assert result.loss.isfinite()
    assert gradients(result.loss, sure).isfinite().all()


def directly(model, x, y, p, s, delta):
    """V(0) + delta (E ||grad J||_*^q)^(1/q), differentiated through as it stands."""
    x = x.clone().requires_grad_()
    losses = functional.cross_entropy(model(x), y, reduction="none")
    (g,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
    norms, q = torch.linalg.vector_norm(g.flatten(1), ord=conjugate(s), dim=1), conjugate(p)
    return losses.mean() + delta * norms.pow(q).mean().pow(1 / q)


@pytest.mark.parametrize("p", [1.5, 2.0, INF])
@pytest.mark.parametrize("s", [1.0, 1.5, 2.0, INF])
def test_first_order_penalty(p, s):
    model, (x, y) = small_network().double(), random_batch(12)
    model = WithFloatInput(model)
    result = FirstOrderPenalty(p=p, norm=s, delta=0.3)(model, x, x, y)
    expected = directly(model, x, y, p, s, 0.3)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=0, check_dtype=False)
    torch.testing.assert_close(gradients(result.loss, model), gradients(expected, model), rtol=1e-4, atol=1e-6)
    v0 = functional.cross_entropy(model(x), y)
    assert result.terms["v0"].item() == pytest.approx(v0.item(), rel=1e-6)
    assert result.terms["upsilon"].item() == pytest.approx((expected - v0).item() / 0.3, rel=1e-5)
    assert (gradients(result.loss, model) - gradients(v0, model)).norm() > 0.01


class WithFloatInput(nn.Module):
    """A float64 network behind float32 images: the penalty's gradient is exact enough to compare."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.double())


@pytest.mark.parametrize(("p", "s"), [(1.5, 2.0), (2.0, 3.0), (INF, 2.0)])
def test_first_order_penalty_by_finite_differences(p, s):
    model, (x, y) = WithFloatInput(small_network().double()), random_batch(12)
    objective = FirstOrderPenalty(p=p, norm=s, delta=0.3)
    weight = model.inner[1].weight
    (gradient,) = torch.autograd.grad(objective(model, x, x, y).loss, weight)
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
    sides = []
    for step in (1e-3, -1e-3):
        moved = copy.deepcopy(model)
        moved.inner[1].weight.data += step * direction
        sides.append(objective(moved, x, x, y).loss.item())
    assert (sides[0] - sides[1]) / 2e-3 == pytest.approx((gradient * direction).sum().item(), rel=1e-3)


def test_first_order_penalty_with_flat_images():
    """Under ReDLR misclassified images have no gradient; they count in the mean and add nothing."""
    model, (x, y) = small_network(), random_batch(12)
    right = model(x).argmax(1) == y
    assert 0 < right.sum() < 12
    for p in (1.5, INF):
        for s in (1.0, 2.0, INF):
            result = FirstOrderPenalty(p=p, norm=s, delta=0.3, loss="redlr")(model, x, x, y)
            assert gradients(result.loss, model).isfinite().all()
            some = FirstOrderPenalty(p=p, norm=s, delta=0.3, loss="redlr")(model, x[right], x[right], y[right])
            q = conjugate(p)
            share = (right.sum() / 12).item() ** (1 / q)
            assert result.terms["upsilon"].item() == pytest.approx(share * some.terms["upsilon"].item(), rel=1e-5)
    flat = FirstOrderPenalty(p=2, norm=2, delta=0.3, loss=lambda z, y: 0 * z.sum(1))(model, x, x, y)
    assert flat.loss == 0
    assert (gradients(flat.loss, model) == 0).all()


@pytest.mark.parametrize(
    "objective",
    [
        Standard(),
        Adversarial(),
        WTrades(beta=3.0),
        StatisticallyRobust(kl_radius=0.3),
        *(FirstOrderPenalty(p=p, norm=2, delta=0.3) for p in (1.5, 2.0, INF)),
    ],
    ids=["standard", "adversarial", "w_trades", "sr_wdro", "penalty 1.5", "penalty 2", "penalty inf"],
)
def test_mean_of_rank_gradients_is_the_gradient_of_the_global_batch(objective):
    model, (x, x_adv, y) = small_network(), batch()
    whole = gradients(objective(model, x, x_adv, y).loss, model)

    def run(reducer, copy):
        mine = slice(reducer.rank, None, 2)
        return gradients(objective(copy, x[mine], x_adv[mine], y[mine], reducer=reducer).loss, copy)

    torch.testing.assert_close(torch.stack(on_ranks(2, run, model)).mean(0), whole, rtol=1e-4, atol=1e-6)

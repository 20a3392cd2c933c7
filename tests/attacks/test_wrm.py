"""The inner problem of WRM, where its maximiser is known."""

import math

import pytest
import torch
from oracles import (
    Linear,
    conjugate,
    half_square,
    linear_value,
    norm,
    on_ranks,
    own_logit,
    power_mean,
    random_batch,
    small_network,
)
from scipy.optimize import minimize
from torch import nn

from wdro_train.attacks import WFGSM, WRM
from wdro_train.utils.errors import UserError

INF = math.inf


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inner_images(count):
    return 0.45 + 0.1 * torch.rand(count, 1, 5, 5, generator=seeded())


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("s", [1.0, 1.5, 2.0, INF])
def test_linear_loss_has_the_conjugate_of_the_penalty_as_its_value(p, s):
    """max over u of <g, u> - gamma ||u||^p = (p - 1) gamma (||g||_* / (p gamma))^q, at every image by itself."""
    x, gamma = inner_images(20), 40.0
    g = torch.randn(x.shape, generator=seeded(1)) * torch.linspace(0.3, 1, 20)[:, None, None, None]
    found = WRM(p=p, norm=s, delta=1, gamma=gamma, loss=own_logit)(Linear(g), x, torch.arange(20))
    u = found.x_adv.double() - x.double()
    reached = linear_value(g, u) - gamma * norm(u, s) ** p
    exact = (p - 1) * gamma * (norm(g, conjugate(s)) / (p * gamma)) ** conjugate(p)
    torch.testing.assert_close(reached, exact, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.distances, norm(u, s), rtol=1e-5, atol=1e-9)
    assert found.upsilon.item() == pytest.approx(power_mean(norm(g, conjugate(s)), conjugate(p)), rel=1e-6)


@pytest.mark.parametrize("s", [2.0, INF])
def test_the_price_at_which_w_fgsm_spends_its_budget(s):
    """p gamma delta^(p-1) = Upsilon: for a linear loss WRM is then W-FGSM (theory, section 9)."""
    x = inner_images(20)
    g = torch.randn(x.shape, generator=seeded(1)) * torch.linspace(0.7, 1.3, 20)[:, None, None, None]
    q = WFGSM(p=2, norm=s, delta=0.1, loss=own_logit)(Linear(g), x, torch.arange(20))
    ours = WRM(p=2, norm=s, delta=7, gamma=q.upsilon.item() / 0.2, loss=own_logit)(Linear(g), x, torch.arange(20))
    torch.testing.assert_close(ours.x_adv, q.x_adv, rtol=0, atol=1e-6)


def test_quadratic_loss():
    """J = ||x||^2 / 2 and gamma > 1/2: the maximiser is x + x / (2 gamma - 1)."""
    x = 0.02 + 0.2 * torch.rand(16, 1, 5, 5, generator=seeded())
    for gamma in (1.0, 2.0, 20.0):
        found = WRM(p=2, norm=2, delta=1, gamma=gamma, loss=half_square, steps=100)(
            nn.Flatten(), x, torch.zeros(16).long()
        )
        torch.testing.assert_close(found.x_adv, x + x / (2 * gamma - 1), rtol=1e-3, atol=0)


def test_linear_loss_in_the_box():
    """In l_2 the maximiser is clamp(x + g / (2 gamma)): each pixel goes its own way."""
    x, _ = random_batch(30)
    g = torch.randn(x.shape, generator=seeded(1))
    found = WRM(p=2, norm=2, delta=1, gamma=2, loss=own_logit)(Linear(g), x, torch.arange(30))
    torch.testing.assert_close(found.x_adv, (x + g / 4).clamp(0, 1), rtol=0, atol=1e-6)
    assert ((x + g / 4).clamp(0, 1) != x + g / 4).float().mean() > 0.2


def test_strongly_concave_problem_against_a_solver():
    """A smooth network and a high price: one maximum in the box, which L-BFGS-B finds as well."""
    model, (x, y) = small_network().double(), random_batch(6)
    gamma = 0.2

    def value(image, label):
        return nn.functional.cross_entropy(model(image.view(1, 1, 6, 6)), label[None])

    attack = WRM(p=2, norm=2, delta=1, gamma=gamma, steps=60)
    x_adv = attack(nn.Sequential(Double(), model), x, y).x_adv.double()
    for image, found, label in zip(x.double(), x_adv, y, strict=True):

        def negative(v, image=image, label=label):
            point = torch.tensor(v, requires_grad=True)
            loss = gamma * (point - image.flatten()).square().sum() - value(point, label)
            (gradient,) = torch.autograd.grad(loss, point)
            return loss.item(), gradient.numpy()

        best = minimize(negative, image.flatten().numpy(), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * 36)
        ours = negative(found.flatten().numpy())[0]
        clean = negative(image.flatten().numpy())[0]
        assert clean - best.fun > 0.02
        assert best.fun - 1e-6 <= ours <= best.fun + 1e-3 * (clean - best.fun)
    assert (norm(x_adv - x.double(), 2) > 0.1).all()


class Double(nn.Module):
    def forward(self, x):
        return x.double()


def test_the_dual_bounds_the_loss_of_other_distributions():
    """E_Q[J] <= gamma W_2(P, Q)^2 + E max(J - gamma d^2), for W-PGD's distribution too, where J is smooth enough."""
    model, (x, y) = small_network(), random_batch(40)
    gamma = 0.2

    def mean_loss(images):
        return nn.functional.cross_entropy(model(images), y).item()

    found = WRM(p=2, norm=2, delta=1, gamma=gamma, steps=60)(model, x, y)
    surrogate = mean_loss(found.x_adv) - gamma * found.distances.square().mean().item()
    assert surrogate > mean_loss(x) + 0.05
    for delta in (0.1, 0.3, 1.0):
        other = WFGSM(p=2, norm=2, delta=delta)(model, x, y)
        assert mean_loss(other.x_adv) <= gamma * other.distances.square().mean().item() + surrogate + 1e-3


def test_each_image_goes_its_own_way():
    model, (x, y) = small_network(batch_norm=True).eval(), random_batch(9)
    attack = WRM(p=2, norm=2, delta=1, gamma=1.0, steps=4)
    together = attack(model, x, y).x_adv
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]).x_adv for i in range(9)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    other_ball = WRM(p=2, norm=2, delta=9, gamma=1.0, steps=4)(model, x, y).x_adv
    assert torch.equal(other_ball, together)
    assert together.min() >= 0
    assert together.max() <= 1


def test_ranks_agree_with_one_process():
    model, (x, y) = small_network(), random_batch(12)
    attack = WRM(p=2, norm=INF, delta=1, gamma=30, steps=3)
    one = attack(model, x, y)

    def run(reducer, copy):
        return attack(copy, x[reducer.rank :: 2], y[reducer.rank :: 2], reducer=reducer)

    for rank, result in enumerate(on_ranks(2, run, model)):
        assert result.upsilon.item() == pytest.approx(one.upsilon.item(), rel=1e-6)
        torch.testing.assert_close(result.x_adv, one.x_adv[rank::2], rtol=0, atol=1e-5)


def test_images_without_gradient_stay():
    x, y = random_batch(5)
    found = WRM(p=2, norm=2, delta=1, loss=lambda z, t: 0 * z.sum(1))(small_network(), x, y)
    assert torch.equal(found.x_adv, x)
    assert found.zero_gradients == 5


def test_it_refuses_what_has_no_price():
    for options, message in (
        ({"p": INF}, r"attack\.p=inf"),
        ({"p": 1}, r"attack\.p=1"),
        ({"gamma": 0}, "gamma=0"),
        ({"gamma": INF}, "gamma=inf"),
        ({"gamma": math.nan}, "gamma"),
        ({"steps": 0}, "steps=0"),
        ({"step_size": 1.5}, r"step_size=1\.5"),
    ):
        with pytest.raises(UserError, match=message):
            WRM(**{"p": 2, "norm": 2, "delta": 0.1, **options})

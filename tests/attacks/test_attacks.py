import math

import numpy as np
import ot
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
from torch import nn

from wdro_train.attacks import WFGSM, WPGD, Pool
from wdro_train.theory import power_mean as moments
from wdro_train.theory.sensitivity import BatchScope, WholeSetScope
from wdro_train.utils.errors import UserError

INF = math.inf
ORDERS = [1.5, 2.0, 3.0, INF]
NORMS = [1.0, 1.5, 2.0, 3.0, INF]
EVERY_KIND = {
    "fgsm": (WFGSM, {}),
    "fgsm, clamped": (WFGSM, {"box": False}),
    "last": (WPGD, {"steps": 4, "random_start": False}),
    "last, clamped": (WPGD, {"steps": 4, "box": False, "random_start": False}),
    "best": (WPGD, {"steps": 4, "keep": "best", "random_start": False}),
    "cheapest": (WPGD, {"steps": 4, "keep": "cheapest", "random_start": False}),
    "nearest": (WPGD, {"steps": 4, "keep": "nearest", "random_start": False}),
    "random start": (WPGD, {"steps": 4, "random_start": True}),
}
every_kind = pytest.mark.parametrize(("kind", "options"), EVERY_KIND.values(), ids=EVERY_KIND)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def inner_images(count, pixels=25, seed=0):
    """Images in the middle of the box, still in the finer half of float32."""
    return 0.45 + 0.04 * torch.rand(count, 1, 5, pixels // 5, generator=seeded(seed))


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("s", NORMS)
@pytest.mark.parametrize("box", [True, False])
def test_linear_loss_is_exact(p, s, box):
    """V(delta) = V(0) + delta Upsilon, and one step attains it."""
    x, delta = inner_images(20), 0.1
    g = torch.randn(x.shape, generator=seeded(1)) * torch.linspace(0.7, 1.3, 20)[:, None, None, None]
    upsilon = power_mean(norm(g, conjugate(s)), conjugate(p))
    for attack in (
        WFGSM(p=p, norm=s, delta=delta, loss=own_logit, box=box),
        WPGD(p=p, norm=s, delta=delta, loss=own_logit, box=box, steps=5, random_start=False),
    ):
        result = attack(Linear(g), x, torch.arange(20))
        gain = linear_value(g, result.x_adv.double() - x.double()).mean().item()
        assert gain == pytest.approx(delta * upsilon, rel=1e-5)
        assert result.upsilon.item() == pytest.approx(upsilon, rel=1e-6)
        assert power_mean(norm(result.x_adv.double() - x.double(), s), p) == pytest.approx(delta, rel=1e-5)


def test_quadratic_reaches_the_worst_case():
    """J = ||x||^2 / 2, p = s = 2: V(delta) = (sqrt(E||x||^2) + delta)^2 / 2."""
    x = 0.05 + 0.3 * torch.rand(16, 1, 5, 5, generator=seeded()) * torch.linspace(0.1, 1, 16)[:, None, None, None]
    delta = 0.5
    exact = (power_mean(norm(x, 2), 2) + delta) ** 2 / 2
    x_adv = WPGD(p=2, norm=2, delta=delta, loss=half_square, steps=50, random_start=False)(
        nn.Flatten(), x, torch.zeros(16).long()
    ).x_adv
    reached = (norm(x_adv, 2) ** 2 / 2).mean().item()
    assert reached == pytest.approx(exact, rel=1e-3)
    assert reached <= exact * (1 + 1e-6)


@every_kind
@pytest.mark.parametrize("p", [1.5, 2.0, INF])
def test_scaling_the_loss_scales_upsilon_alone(kind, options, p):
    x, y = random_batch(12)
    # exp is smooth and strictly positive: no cancellation at 1e-20
    results = [
        kind(
            p=p,
            norm=2,
            delta=0.5,
            loss=lambda z, t, c=c: c * nn.functional.cross_entropy(z, t, reduction="none"),
            **options,
        )(small_network(), x, y, generator=seeded())
        for c in (1.0, 2.0**-67)  # 7e-21, a power of two: the same bits
    ]
    assert results[0].upsilon > 0
    assert torch.equal(results[1].upsilon / 2.0**-67, results[0].upsilon)
    assert torch.equal(results[1].x_adv, results[0].x_adv)


def test_gradients_of_1e_20():
    x, g = inner_images(10), torch.randn(10, 1, 5, 5, generator=seeded(2)) * 1e-20
    for s in NORMS:
        result = WFGSM(p=1.5, norm=s, delta=0.1, loss=own_logit)(Linear(g), x, torch.arange(10))
        upsilon = power_mean(norm(g.double() * 1e20, conjugate(s)), 3) * 1e-20
        assert result.upsilon.item() == pytest.approx(upsilon, rel=1e-6, abs=0)
        gain = linear_value(g.double() * 1e20, result.x_adv.double() - x.double()).mean().item()
        assert gain == pytest.approx(0.1 * upsilon * 1e20, rel=1e-5)


@every_kind
@pytest.mark.parametrize("p", [1.5, 2.0, INF])
@pytest.mark.parametrize("s", [1.0, 2.0, INF])
def test_membership(kind, options, p, s):
    x, y = random_batch(40, seed=3)
    for delta in (0.3, 8 / 255, 1e-3):
        attack = kind(p=p, norm=s, delta=delta, **options)
        result = attack(small_network(), x, y, generator=seeded())
        displacement = result.x_adv.double() - x.double()
        assert power_mean(norm(displacement, s), p) <= delta * (1 + 1e-6)
        assert attack.ball.spent(result.distances) <= delta * (1 + 1e-6)
        torch.testing.assert_close(result.distances, norm(displacement, s), rtol=1e-5, atol=1e-9)
        assert result.x_adv.dtype == torch.float32
        assert result.x_adv.min() >= 0
        assert result.x_adv.max() <= 1


@pytest.mark.parametrize(("p", "s"), [(1.5, INF), (2.0, 2.0), (3.0, 1.0)])
def test_true_wasserstein_distance(p, s):
    """The optimal coupling, labels held in place, costs no more than the identity coupling that proves membership."""
    x, y = random_batch(30, seed=4)
    delta = 0.3
    for attack in (
        WFGSM(p=p, norm=s, delta=delta),
        WPGD(p=p, norm=s, delta=delta, steps=10, keep="cheapest", random_start=False),
    ):
        x_adv = attack(small_network(), x, y).x_adv
        flat = [v.double().flatten(1) for v in (x, x_adv)]
        cost = torch.cdist(*flat, p=s).pow(p) + 1e6 * (y[:, None] != y[None]).double()
        uniform = np.full(30, 1 / 30)
        assert ot.emd2(uniform, uniform, cost.numpy()) ** (1 / p) <= delta * (1 + 1e-6)


@every_kind
@pytest.mark.parametrize("p", [1.5, 2.0, INF])
def test_order_and_micro_batches_do_not_matter(kind, options, p):
    x, y = random_batch(23, seed=5)
    model, order = small_network(), torch.randperm(23, generator=seeded())
    whole = kind(p=p, norm=2, delta=0.5, **options)(model, x, y, generator=seeded())
    parts = kind(p=p, norm=2, delta=0.5, batch_size=5, **options)(model, x, y, generator=seeded())
    torch.testing.assert_close(parts.x_adv, whole.x_adv, rtol=0, atol=1e-5)
    assert parts.upsilon.item() == pytest.approx(whole.upsilon.item(), rel=1e-6)
    if "random_start" not in options:
        moved = kind(p=p, norm=2, delta=0.5, **options)(model, x[order], y[order])
        torch.testing.assert_close(moved.x_adv, whole.x_adv[order], rtol=0, atol=1e-5)
        assert moved.upsilon.item() == pytest.approx(whole.upsilon.item(), rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(EVERY_KIND) - {"best", "random start"}))  # those two look at the batch
def test_pointwise_threat_ignores_the_batch(name):
    kind, options = EVERY_KIND[name]
    x, y = random_batch(9, seed=6)
    attack, model = kind(p="inf", norm=2, delta=0.5, **options), small_network()
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]).x_adv for i in range(9)])
    together = attack(model, x, y).x_adv
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@every_kind
@pytest.mark.parametrize("p", [1.5, INF])
def test_padding_changes_nothing(kind, options, p):
    x, y = random_batch(12, seed=7)
    attack, model = kind(p=p, norm=2, delta=0.5, **options), small_network()
    plain = attack(model, x[:8], y[:8], generator=seeded())
    weight = (torch.arange(12) < 8).float()
    padded = attack(model, x, y, weight=weight, generator=seeded())
    assert padded.upsilon.item() == pytest.approx(plain.upsilon.item(), rel=1e-6)
    torch.testing.assert_close(padded.x_adv[:8], plain.x_adv, rtol=0, atol=1e-5)


@every_kind
@pytest.mark.parametrize("p", [1.5, 2.0, INF])
def test_ranks_agree_with_one_process(kind, options, p):
    """Dealt out image by image, padded to equal length as a distributed sampler does."""
    x, y = random_batch(11, seed=8)
    rows = torch.tensor([*range(11), 0])
    weight = (torch.arange(12) < 11).double()
    model = small_network()
    attack = kind(p=p, norm=2, delta=0.5, **options)
    one = attack(model, x[rows], y[rows], weight=weight, generator=seeded())

    def run(reducer, copy):
        mine = slice(reducer.rank, None, 2)
        args = (copy, x[rows][mine], y[rows][mine])
        return attack(*args, weight=weight[mine], reducer=reducer, generator=seeded())

    for rank, result in enumerate(on_ranks(2, run, model)):
        assert result.upsilon.item() == pytest.approx(one.upsilon.item(), rel=1e-6)
        torch.testing.assert_close(result.x_adv, one.x_adv[rank::2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("s", NORMS)
def test_random_start(s):
    x, y = random_batch(50, seed=9)
    attack = WPGD(p=2, norm=s, delta=0.2, steps=1, step_size=1e-12, random_start=True)
    starts = [attack(small_network(), x, y, generator=seeded(k)).x_adv for k in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    distances = norm(starts[0].double() - x.double(), s)
    assert (distances <= 0.2 * (1 + 1e-6)).all()
    assert distances.min() > 0.02
    model = small_network()
    assert not torch.equal(attack(model, x, y).x_adv, attack(model, x, y).x_adv)


class Poisoned(nn.Module):
    """NaN gradients for images whose first pixel is exactly 1, no gradient where it is exactly 0."""

    def __init__(self):
        super().__init__()
        self.inner = small_network()

    def forward(self, x):
        first = x.flatten(1)[:, :1]
        logits = self.inner(x)
        logits = torch.where(first == 0, logits.detach(), logits)
        return logits + 0 * (1 - first).sqrt()


@every_kind
@pytest.mark.parametrize("p", [1.5, 2.0, INF])
def test_zero_and_nonfinite_gradients(kind, options, p):
    x, y = random_batch(12, seed=10)
    x[:, 0, 0, 0] = 0.5
    x[3, 0, 0, 0], x[5, 0, 0, 0] = 1, 0
    model = Poisoned()
    y[3] = (model(x[3:4]).argmax() + 1) % 5
    alive = torch.tensor([i for i in range(12) if i not in (3, 5)])
    attack = kind(p=p, norm=2, delta=0.3, **options)
    result = attack(model, x, y, generator=seeded())
    assert result.x_adv.isfinite().all()
    assert result.upsilon.isfinite()
    assert attack.ball.spent(result.distances) <= 0.3 * (1 + 1e-6)
    if options.get("random_start"):
        return
    assert torch.equal(result.x_adv[[3, 5]], x[[3, 5]])
    assert result.distances[alive].max() > 0
    cheapest = options.get("keep") in (
        "cheapest",
        "nearest",
    )  # misclassified ones, the third included, are not attacked
    assert result.nonfinite_gradients == (1 if cheapest else options.get("steps", 1))
    if not cheapest:
        assert result.zero_gradients == 2
        weight = torch.ones(12)
        weight[[3, 5]] = 0
        expected = attack(model, x, y, weight=weight)
        # shares are taken over all images, silent ones included
        q = conjugate(p)
        factor = 1 if math.isinf(q) else (10 / 12) ** (1 / q)
        assert result.upsilon.item() == pytest.approx(factor * expected.upsilon.item(), rel=1e-6)


def test_no_gradient_anywhere():
    x, y = random_batch(5)
    for p in (1.5, INF):
        for attack in (
            WFGSM(p=p, norm=2, delta=0.3, loss=lambda z, t: 0 * z.sum(1)),
            WPGD(p=p, norm=2, delta=0.3, loss=lambda z, t: 0 * z.sum(1), steps=50, random_start=False),
        ):
            result = attack(small_network(), x, y)
            assert torch.equal(result.x_adv, x)
            assert result.upsilon == 0
            assert result.zero_gradients == 5


def test_zero_radius():
    x, y = random_batch(20)
    for kind, options in EVERY_KIND.values():
        for p in (1.5, INF):
            assert torch.equal(kind(p=p, norm=2, delta=0, **options)(small_network(), x, y).x_adv, x)


@every_kind
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_model_is_left_as_it_was(kind, options, mode):
    if mode == "train" and options.get("keep") == "nearest":
        pytest.skip("refused: it looks at single images")
    x, y = random_batch(16)
    model = nn.Sequential(small_network(batch_norm=True), nn.Dropout(0.5))
    model.train()
    model[0][3].eval()  # flags differ between submodules
    model[0][1].weight.requires_grad_(False)
    model[0][4].bias.grad = torch.full_like(model[0][4].bias, 3.0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    requires = [q.requires_grad for q in model.parameters()]
    kind(p=2, norm=2, delta=0.3, batch_norm=mode, **options)(model, x, y)
    assert flags == [m.training for m in model.modules()]
    assert requires == [q.requires_grad for q in model.parameters()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    grads = [q.grad for q in model.parameters()]
    assert [g is None for g in grads] == [True] * (len(grads) - 1) + [False]
    assert (model[0][4].bias.grad == 3).all()


def test_batch_norm_mode_is_the_one_asked_for():
    x, y = random_batch(16)
    model = small_network(batch_norm=True).train()
    logits = {m: WFGSM(p=2, norm=2, delta=0.3, batch_norm=m)(model, x, y).logits for m in ("eval", "train")}
    torch.testing.assert_close(logits["train"], model(x).detach())
    torch.testing.assert_close(logits["eval"], small_network(batch_norm=True).eval()(x).detach())
    with pytest.raises(UserError, match=r"attack\.batch_norm='on' is unknown; choose eval or train"):
        WFGSM(p=2, norm=2, delta=0.3, batch_norm="on")


def test_flags_are_restored_after_an_error():
    x, y = random_batch(4)
    model = small_network().train()
    with pytest.raises(UserError):
        WPGD(p=2, norm=2, delta=0.3, steps=50, random_start=False)(model, x, y + 10)
    assert all(m.training for m in model.modules())


@every_kind
def test_inference_mode_and_autocast(kind, options):
    x, y = random_batch(16)
    model, attack = small_network(), kind(p=2, norm=2, delta=0.3, **options)
    outside = attack(model, x, y, generator=seeded())
    with torch.inference_mode():
        inside = attack(model, x.clone(), y.clone(), generator=seeded())
        assert torch.is_inference_mode_enabled()
        assert torch.equal(inside.x_adv, outside.x_adv)
        with torch.autocast("cpu", torch.bfloat16):
            model(x)  # fills the weight cache with inference tensors
            half = attack(model, x.clone(), y.clone(), generator=seeded())
            assert torch.is_autocast_cache_enabled()
    assert half.x_adv.dtype == torch.float32
    assert half.logits.dtype == torch.bfloat16
    assert half.upsilon.item() == pytest.approx(outside.upsilon.item(), rel=0.05)
    assert attack.ball.spent(half.distances) <= 0.3 * (1 + 1e-6)
    with torch.no_grad():
        assert torch.equal(attack(model, x, y, generator=seeded()).x_adv, outside.x_adv)


def test_half_and_double_precision():
    x, y = random_batch(16)
    single = WFGSM(p=2, norm=2, delta=0.3)(small_network(), x, y)
    half = WFGSM(p=2, norm=2, delta=0.3)(small_network().bfloat16(), x, y)
    double = WFGSM(p=2, norm=2, delta=0.3)(small_network().double(), x.double(), y.int())
    assert half.x_adv.dtype == double.x_adv.dtype == torch.float32
    assert half.upsilon.item() == pytest.approx(single.upsilon.item(), rel=0.05)
    assert double.upsilon.item() == pytest.approx(single.upsilon.item(), rel=1e-5)
    torch.testing.assert_close(double.x_adv, single.x_adv, rtol=0, atol=1e-5)


class Count(torch.autograd.Function):
    tally: list[str]

    @staticmethod
    def forward(ctx, x):
        Count.tally.append("F")
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        Count.tally.append("B")
        return g


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = small_network()

    def forward(self, x):
        return self.inner(Count.apply(x))


@pytest.mark.parametrize(
    ("kind", "options", "forwards", "backwards"),
    [
        (WFGSM, {}, 1, 1),
        (WPGD, {"steps": 7, "random_start": False}, 7, 7),
        (WPGD, {"steps": 7, "random_start": True}, 7, 7),
        (WPGD, {"steps": 7, "keep": "best", "random_start": False}, 8, 7),
        (WPGD, {"steps": 7, "keep": "cheapest", "random_start": False}, 8, 7),
        (WPGD, {"steps": 7, "keep": "nearest", "random_start": False}, 8, 7),
        (WPGD, {"steps": 7, "keep": "best", "random_start": True}, 9, 7),
    ],
)
def test_passes(kind, options, forwards, backwards):
    Count.tally = []
    x, _ = random_batch(16)
    model = Counted()
    y = model(x).argmax(1)  # all correct: at this radius some stay so
    Count.tally = []
    done = []
    if kind is WPGD:
        options = options | {"progress": done.append}
    kind(p="inf", norm="inf", delta=1e-3, **options)(model, x, y)
    assert (Count.tally.count("F"), Count.tally.count("B")) == (forwards, backwards)
    assert done == ([] if kind is WFGSM else list(range(1, 8)))


@pytest.mark.parametrize("kind", [WFGSM, WPGD])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (x * 255, y), r"images range over .*scale them to \[0, 1\]"),
        (lambda x, y: (x - 0.5, y), r"images range over"),
        (lambda x, y: (torch.full_like(x, math.nan), y), r"images range over \[nan, nan\]"),
        (lambda x, y: (torch.cat([x[:-1], x[-1:] * math.nan]), y), r"images range over"),
        (lambda x, y: ((x * 255).to(torch.uint8), y), r"images are torch\.uint8"),
        (lambda x, y: (x, y + 1), r"labels range over \[\d, 5\] but the network has 5 outputs"),
        (lambda x, y: (x, y - 1), r"labels range over \[-1, \d\]"),
        (lambda x, y: (x, y.float()), r"give one integer per image"),
        (lambda x, y: (x, y[:-1]), r"give one integer per image"),
        (lambda x, y: (x, y[:, None]), r"give one integer per image"),
        (lambda x, y: (x[:0], y[:0]), r"the batch is empty"),
    ],
)
def test_bad_input(kind, spoil, message):
    x, y = random_batch(40)
    with pytest.raises(UserError, match=message):
        kind(p=2, norm=2, delta=0.1)(small_network(), *spoil(x, y))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"attack\.steps=0 makes no step"),
        ({"step_size": 0}, r"attack\.step_size=0 does not ascend"),
        ({"step_size": math.nan}, r"attack\.step_size=nan"),
        ({"scope": "epoch"}, r"attack\.scope='epoch' is unknown"),
        ({"loss": "hinge"}, r"unknown loss 'hinge'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        WPGD(p=2, norm=2, delta=0.1, **options)


@pytest.mark.parametrize("p", [1.5, 2.0, INF])
def test_whole_set_scope_gives_every_batch_its_part_of_q_delta(p):
    x, y = random_batch(30, seed=11)
    model = small_network()
    whole = WFGSM(p=p, norm=2, delta=0.3)
    parts = [(x[s], y[s]) for s in (slice(7), slice(7, 20), slice(20, 30))]
    gathered = torch.stack([whole.gradient_moment(model, *part) for part in parts])
    scope = WholeSetScope(moments.merge(gathered, whole.ball.q))
    piecewise = WFGSM(p=p, norm=2, delta=0.3, scope=scope)
    pieces = [piecewise(model, *part) for part in parts]
    expected = whole(model, x, y)
    torch.testing.assert_close(torch.cat([r.x_adv for r in pieces]), expected.x_adv, rtol=0, atol=1e-6)
    assert all(r.upsilon.item() == pytest.approx(expected.upsilon.item(), rel=1e-6) for r in pieces)


def test_running_scope_gives_hard_batches_more():
    x, g = inner_images(20), torch.randn(20, 1, 5, 5, generator=seeded(3))
    attack = WFGSM(p=2, norm=2, delta=0.05, loss=own_logit, scope="running")
    spent = []
    for scale in (1.0, 1.0, 3.0, 0.3):
        result = attack(Linear(scale * g), x, torch.arange(20))
        spent.append(attack.ball.spent(result.distances).item())
    assert spent[:2] == pytest.approx([0.05, 0.05], rel=1e-4)
    assert spent[2] > 0.06
    assert spent[3] < 0.02
    assert isinstance(WFGSM(p=2, norm=2, delta=0.1).scope, BatchScope)


def test_pool_refuses_different_balls():
    with pytest.raises(UserError, match="a pool needs attacks on one ball"):
        Pool([WFGSM(p=2, norm=2, delta=0.1), WFGSM(p=2, norm=2, delta=0.2)])
    with pytest.raises(UserError, match="a pool needs attacks on one ball"):
        Pool([])

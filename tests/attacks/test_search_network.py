"""Searches in faster arithmetic: whatever the gradients are, what is reported are flips of the network in float32."""

import math
import threading

import pytest
import torch
from oracles import further, norm, reference_images, reference_network
from torch import nn

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.rounds import AnyRival, Round, Wanted
from wdro_train.attacks.search_network import SearchArithmetic
from wdro_train.attacks.starts import AtRandom, AtTheFlip
from wdro_train.theory.losses import correct, margin
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

INF = math.inf
FAST = [SearchArithmetic("bf16-mixed"), SearchArithmetic(channels_last=True), SearchArithmetic("bf16", True)]
DELTA = {INF: 0.1, 2: 1.0, 1: 5.0}


def linear(pixels=16, classes=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    with torch.no_grad():
        model[1].weight.normal_()
        model[1].bias.copy_(-model[1].weight.sum(1) / 2 + torch.randn(classes))
    return model


class Liar(nn.Module):
    """Calls every image misclassified, with gradients that lead nowhere."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes

    def forward(self, x):
        return 0 * x.flatten(1)[:, :1].expand(-1, self.classes)


@pytest.mark.parametrize(("s", "fast"), [(INF, FAST[0]), (2, FAST[0]), (1, FAST[0]), (2, FAST[1])], ids=str)
def test_worst_cases_are_those_of_float32_within_the_band(s, fast):
    model, (x, y) = reference_network("adversarial"), (part[:40] for part in reference_images())
    attack = MinimalDistance(norm=s, steps=15)
    plain, found = attack(model, x, y), attack(model, x, y, fast=fast.network(model, x[:2]))
    assert torch.equal(found.clean_correct, plain.clean_correct)
    assert torch.equal(found.distances.isinf(), plain.distances.isinf())
    torch.testing.assert_close(norm(found.x_adv - x, s), found.distances, rtol=1e-6, atol=1e-9)
    assert (margin(model(found.x_adv), y)[found.distances < INF] <= 1e-5).all()
    curves = RobustnessCurve(plain.distances.numpy()), RobustnessCurve(found.distances.numpy())
    correct_ones = plain.distances > 0
    assert float((found.distances / plain.distances)[correct_ones].log().mean()) < 0.02
    band = curves[0].band(alpha=0.05).width
    for p in (1, 2, INF):
        for share in (0.5, 1, 2):
            one, other = (curve.accuracy(share * DELTA[s], p) for curve in curves)
            assert abs(one - other) < band / 2


@pytest.mark.parametrize(("s", "dual"), [(INF, 1), (2, 2)])
def test_distances_on_linear_networks_are_exact_from_bfloat16_gradients(s, dual):
    """The nearest boundary point lies inside the box, so that the distance is the margin over the slope's dual norm."""
    model = linear(classes=2)
    x = 0.5 + 0.02 * torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    found = MinimalDistance(norm=s, steps=10)(model, x, y, fast=SearchArithmetic("bf16-mixed").network(model, x))
    weight, bias = (part.detach().double() for part in model[1].parameters())
    gap, slope = x.double().flatten(1) @ (weight[1] - weight[0]) + bias[1] - bias[0], weight[1] - weight[0]
    exact = gap.abs() / norm(slope[None], dual)
    assert (exact > 0.01).sum() > 20
    torch.testing.assert_close(found.distances, exact, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("s", [INF, 2])
def test_a_network_that_lies_to_the_search_makes_no_flips(s):
    model, (x, y) = reference_network("adversarial"), (part[:30] for part in reference_images())
    attack, liar = MinimalDistance(norm=s, steps=6), Liar(10)
    plain, found = attack(model, x, y), attack(model, x, y, fast=liar)
    assert torch.equal(found.distances, plain.distances)  # what it loses is searched once more by the network itself
    for one in (Round("flip", AtTheFlip(), AnyRival("margin"), 5), Round("random", AtRandom(), AnyRival("ce"), 5)):
        wanted = Wanted(DELTA[s], 0.0)
        points, distances = further(one, s, model, x, y, plain.x_adv, plain.distances, wanted, fast=liar)
        assert (distances <= plain.distances).all()
        known = (distances > 0) & distances.isfinite()
        assert not correct(model(points), y)[known & (margin(model(points), y) > 1e-5)].any()


@pytest.mark.parametrize("fast", FAST, ids=str)
def test_rounds_find_flips_of_the_network_itself(fast):
    model, (x, y) = reference_network("adversarial"), (part[:60] for part in reference_images())
    plain = MinimalDistance(norm=INF, steps=3)(model, x, y)
    one = Round("flip", AtTheFlip(), AnyRival("margin"), 10)
    points, distances = further(
        one, INF, model, x, y, plain.x_adv, plain.distances, Wanted(0.15, 0.0), fast=fast.network(model, x)
    )
    fell = distances < plain.distances
    assert fell.sum() > 10
    assert (margin(model(points), y)[fell] <= 1e-5).all()
    torch.testing.assert_close(norm(points - x, INF)[fell], distances[fell], rtol=1e-6, atol=0)


@pytest.mark.parametrize("fast", FAST, ids=str)
def test_its_passes_are_those_of_the_network(fast):
    model, x = reference_network("standard"), reference_images()[0][:7]
    network = fast.network(model, x)
    with PassCounter(model) as counter:
        images = x.clone().requires_grad_()
        network(images).sum().backward()
    assert (counter.forward, counter.backward) == (7, 7)
    assert images.grad.is_contiguous()
    assert network(x).dtype == torch.float32
    assert all(weight.is_contiguous() for weight in model.parameters())


def test_the_network_itself_where_nothing_is_chosen():
    model = linear()
    assert SearchArithmetic("32").network(model, torch.rand(2, 1, 4, 4)) is model
    assert SearchArithmetic("bf16") == SearchArithmetic("bf16-mixed") != SearchArithmetic()
    assert SearchArithmetic(32) == SearchArithmetic()


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="precision=8 is unknown; choose 32-true or bf16-mixed"):
        SearchArithmetic("8")


def test_a_network_without_copy_is_refused():
    model = linear()
    model.lock = threading.Lock()
    with pytest.raises(UserError, match="Sequential cannot be copied"):
        SearchArithmetic(channels_last=True).network(model, torch.rand(2, 1, 4, 4))
    SearchArithmetic("bf16-mixed").network(model, torch.rand(2, 1, 4, 4))


def test_a_network_that_cannot_be_compiled_is_refused(monkeypatch):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no compiler\nand a long trace")

    def broken(model, **options):
        return Broken()

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match=r"cannot be compiled here \(no compiler\); leave it out"):
        SearchArithmetic(compile=True).network(linear(), torch.rand(2, 1, 4, 4))


@pytest.mark.slow
def test_a_compiled_search_finds_the_same_worst_case():
    model, (x, y) = reference_network("adversarial"), (part[:60] for part in reference_images())
    try:
        fast = SearchArithmetic(compile=True).network(model, x[:2])
    except UserError as error:
        pytest.skip(str(error))
    attack = MinimalDistance(norm=INF, steps=8)
    with PassCounter(model) as passes:
        plain = attack(model, x, y)
    with PassCounter(model) as compiled:
        found = attack(model, x, y, fast=fast)
    assert compiled.pairs >= passes.pairs
    for p in (2, INF):
        one, other = (RobustnessCurve(part.distances.numpy()).accuracy(0.1, p) for part in (plain, found))
        assert abs(one - other) < 0.02

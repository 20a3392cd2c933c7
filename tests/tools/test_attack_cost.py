import pytest
import torch
from oracles import random_batch
from torch import nn

from wdro_train.attacks import WPGD, MinimalDistance
from wdro_train.theory.ball import WassersteinBall
from wdro_train.tools import attack_cost
from wdro_train.tools.attack_cost import attacks, cost, passes_alone
from wdro_train.utils.pass_counter import PassCounter


class Clock:
    """Stands still but for what it is told."""

    now = 0.0

    def perf_counter(self):
        return self.now

    process_time = perf_counter


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(attack_cost, "time", clock)
    return clock


@pytest.fixture
def case(clock):
    """A network whose forward pass takes a second for each image, and the backward pass no time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)).eval()
    x, _ = random_batch(12)
    y = model(x).argmax(1)

    def takes(module, inputs, output):
        clock.now += len(output)

    model.register_forward_hook(takes)
    return model, x, y


def test_the_limit_takes_as_many_passes_as_it_is_told(case):
    with PassCounter(case[0]) as counted:
        passes_alone(*case, 3, 2)
    assert (counted.forward, counted.backward) == (5 * 12, 3 * 12)


def test_an_attack_that_is_nothing_but_its_passes_costs_once_its_passes(case):
    found = cost("bare", lambda *batch: passes_alone(*batch, 4, 1), *case, repeats=5)
    assert found.passes == 4.5
    assert found.ratio == pytest.approx(1)


def test_passes_over_a_part_of_the_images_are_scaled(case):
    def part(model, x, y):
        passes_alone(model, x[:5], y[:5], 4, 0)

    assert cost("part", part, *case, repeats=1).ratio == pytest.approx(1)


def test_arithmetic_beyond_the_passes_is_seen(case, clock):
    def dawdling(model, x, y):
        passes_alone(model, x, y, 4, 0)
        clock.now += 2 * len(x)

    assert cost("dawdling", dawdling, *case, repeats=5, processor=True).ratio == pytest.approx(1.5)


@pytest.mark.parametrize("norm", [1, 2, float("inf")])
@pytest.mark.parametrize("p", [1, 2])
def test_every_attack_has_its_row(case, p, norm):
    ball = WassersteinBall(p, norm, 0.1)
    found = dict(attacks(ball, 2))
    assert ("W-FGSM" in found) == (p > 1)
    assert isinstance(found["PGD"], WPGD)
    assert isinstance(found["minimal distance"], MinimalDistance)
    for name, attack in found.items():
        assert cost(name, attack, *case, repeats=1).ratio > 0, name


def test_steps_alone_are_a_pass_each_and_a_last_look(case):
    assert (
        cost("steps", dict(attacks(WassersteinBall(2, 2, 0.1), 4))["minimal distance, steps alone"], *case, 1).passes
        == 4.5
    )

"""`AttackResult.success`: which images the network gets wrong after an attack, whatever attack it was."""

import dataclasses
import math

import pytest
import torch
from oracles import random_batch, small_network

from wdro_train.attacks import KLPGD, WFGSM, WPGD, WRM, BoundaryAttack, Lagrangian, Pool
from wdro_train.theory.losses import correct
from wdro_train.utils.errors import UserError

BALL = {"p": 2, "norm": "inf", "delta": 0.1}
ATTACKS = {
    "last": WPGD(**BALL, steps=3),
    "best": WPGD(**BALL, steps=3, keep="best"),
    "cheapest": WPGD(**BALL, steps=3, keep="cheapest"),
    "nearest": WPGD(**BALL | {"delta": 0.03}, steps=3, keep="nearest"),  # at 0.1 nothing would be left
    "train mode": WPGD(**BALL, steps=3, batch_norm="train"),
    "fgsm": WFGSM(**BALL),
    "kl": KLPGD(**BALL, steps=3),
    "lagrangian": Lagrangian(**BALL, steps=3),
    "wrm": WRM(**BALL, gamma=20, steps=3),
    "boundary": BoundaryAttack(**BALL),
    "pool": Pool([WPGD(**BALL, steps=2), WFGSM(**BALL)]),
}


def batch(count=40):
    """Images, and labels of which a fifth is wrong."""
    x, _ = random_batch(count)
    with torch.no_grad():
        labels = small_network(batch_norm=True).eval()(x).argmax(1)
    labels[::5] = (labels[::5] + 1) % 5
    return x, labels


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("inference", [False, True])
def test_it_is_what_the_network_answers_at_the_images(name, inference):
    model = small_network(batch_norm=True).eval()
    (x, y), generator = batch(), torch.Generator().manual_seed(0)
    with torch.inference_mode(inference):
        result = ATTACKS[name](model, x.clone(), y.int(), generator=generator)
        found = result.success
    with torch.no_grad():
        expected = ~correct(model(result.x_adv), y)
    assert found.dtype == torch.bool
    assert torch.equal(found, expected)
    assert found[::5].all(), "images that were misclassified before count"
    assert not found.all()
    assert found.sum() > 8, "the attack flips further ones"


def test_a_network_in_training_is_asked_as_it_was_attacked_and_left_as_it_is():
    model = small_network(batch_norm=True).train()
    x, y = batch()
    result = WPGD(**BALL, steps=2)(model, x, y)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = result.success
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(found, ~correct(model.eval()(result.x_adv), y))


def test_labels_are_those_of_the_attack():
    x, y = batch()
    result = WPGD(**BALL, steps=2)(small_network().eval(), x, y)
    before = result.success
    y.zero_()
    assert torch.equal(result.success, before)


def test_after_a_step_of_training_it_cannot_be_said():
    model = small_network()
    x, y = batch()
    result = WPGD(**BALL, steps=2)(model, x, y)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(UserError, match="the network has changed since the attack"):
        result.success  # noqa: B018
    known = WPGD(**BALL, steps=2, keep="best")(model, x, y)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    assert known.success.shape == (40,), "its logits are known"


def test_an_attack_of_ones_own_may_leave_it_out():
    result = WPGD(**BALL, steps=2)(small_network(), *batch())
    with pytest.raises(UserError, match=r"does not say which labels it was given; return AttackResult"):
        dataclasses.replace(result, attacked=None).success  # noqa: B018


def test_pointwise_it_agrees_with_adversarial_accuracy():
    """By hand: 1 - mean(success) is the accuracy that the attack leaves."""
    model, (x, y) = small_network().eval(), batch()
    result = WPGD(p=math.inf, norm="inf", delta=0.1, steps=5, keep="cheapest")(model, x, y)
    with torch.no_grad():
        left = (model(result.x_adv).argmax(1) == y).double().mean()
    assert 1 - result.success.double().mean() == pytest.approx(left.item())

"""Another layout of memory and compiled passes: the same network, trained to the same numbers but for rounding."""

import pytest
import torch
from shell import Arrays, adversary, classifier, trainer
from torch import nn

from wdro_train.attacks.mode import attack_mode
from wdro_train.cli.error_messages import sentence
from wdro_train.models import small_cnn
from wdro_train.objectives import Adversarial, FirstOrderPenalty
from wdro_train.training.callbacks import NetworkExecution
from wdro_train.utils.errors import UserError


def trained(*callbacks, objective=None):
    torch.manual_seed(0)
    network = small_cnn((1, 8, 8), 10, [0.3], [0.4], width=4)
    objective = Adversarial() if objective is None else objective
    door = trainer([adversary(random_start=False, first_order=None, val_attack=None), *callbacks])
    door.fit(classifier(network, objective=objective), datamodule=Arrays(80))
    return network


def assert_same(ours, theirs):
    for mine, other in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert mine[0] == other[0]
        torch.testing.assert_close(mine[1], other[1], rtol=1e-3, atol=1e-5)


def test_channels_last_is_a_layout_and_no_other_network():
    found = trained(NetworkExecution(channels_last=True))
    assert found[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert_same(found, trained(NetworkExecution()))


def test_nothing_is_prepared_that_is_not_compiled():
    """A batch of zeros on the device is memory that large images have not to spare; the door is not even looked at."""
    NetworkExecution(channels_last=True).on_fit_start(object(), object())


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_weights():
    found = trained(NetworkExecution(compile=True))
    assert found._compiled_call_impl is not None
    assert all(weight.requires_grad for weight in found.parameters())
    assert_same(found, trained())


def test_a_failing_compiler_is_named_before_any_step(monkeypatch):
    def fails(network):
        def call(x):
            raise RuntimeError("no such compiler\nand a page of details")

        network._compiled_call_impl = call

    monkeypatch.setattr(nn.Module, "compile", fails)
    with pytest.raises(
        UserError, match=r"^compile=true: the network cannot be compiled here \(no such compiler\); leave it out"
    ):
        trained(NetworkExecution(compile=True))


@pytest.mark.slow
def test_compiled_networks_are_not_differentiated_twice():
    with pytest.raises(RuntimeError) as caught:
        trained(NetworkExecution(compile=True), objective=FirstOrderPenalty(p=2, norm="inf", delta=0.1))
    assert "leave out compile=true" in sentence(caught.value)


@pytest.mark.parametrize("wrap", [lambda net: net.compile() or net, torch.compile])
def test_weights_of_compiled_networks_ask_for_no_gradient_while_attacked(wrap):
    """Nothing is compiled before the first call, so this is quick."""
    network = wrap(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    next(network.parameters()).requires_grad_(False)
    asked = [weight.requires_grad for weight in network.parameters()]
    with attack_mode(network):
        assert not any(weight.requires_grad for weight in network.parameters())
    assert [weight.requires_grad for weight in network.parameters()] == asked

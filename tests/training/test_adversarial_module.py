"""A LightningModule of one's own under the adversary: own losses, own optimizers, own logging, the same numbers."""

import lightning as L
import pytest
import torch
from shell import adversary, classifier, digits, loader, network, trainer
from torch.nn.functional import cross_entropy

from wdro_train import AdversarialModule
from wdro_train.attacks import WPGD
from wdro_train.objectives import Adversarial
from wdro_train.training.callbacks import RadiusWarmup
from wdro_train.utils.distributed import default_reducer
from wdro_train.utils.errors import UserError


class Own(AdversarialModule):
    """Cross-entropy on the adversary's images."""

    def __init__(self, **kwargs):
        super().__init__()
        self.network = network(**kwargs)

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        attacked = self.attacked(batch, batch_idx)
        loss = cross_entropy(self(attacked.x_adv), attacked.y)
        self.log("own_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fit(module, *callbacks, epochs=2, **kwargs):
    lightning = trainer(callbacks, max_epochs=epochs, **kwargs)
    lightning.fit(module, loader(60, 30), loader(30, 20, start=200))
    return lightning


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("scope", ["batch", "running"])
def test_the_same_numbers_as_the_module_of_this_package(scope):
    """Weights after two epochs, and every logged figure of validation, to the last bit."""
    own, ours = Own(), classifier(objective=Adversarial())
    found = [fit(module, adversary(scope=scope)).callback_metrics for module in (own, ours)]
    assert torch.equal(weights(own), weights(ours))
    judged = {key for key in found[0] if key.startswith("val/")}
    assert {"val/clean_acc", "val/adv_acc", "val/ratio", "val/upsilon"} <= judged
    assert judged == {key for key in found[1] if key.startswith("val/")}
    assert all(torch.equal(found[0][key].nan_to_num(7), found[1][key].nan_to_num(7)) for key in judged)
    assert "own_loss" in found[0]


class Theirs(L.LightningModule):
    """Another library's task: two optimizers, steps by hand, a validation of its own."""

    def __init__(self, scale):
        super().__init__()
        self.network, self.scale = network(), scale
        self.automatic_optimization = False
        self.seen = []

    def forward(self, x):
        return self.network(x)

    def validation_step(self, batch, batch_idx):
        raise AssertionError("the adversary's judge comes first")

    def configure_optimizers(self):
        first, last = self.network[1].parameters(), self.network[-1].parameters()
        return torch.optim.SGD(first, lr=0.1), torch.optim.SGD(last, lr=0.01)


class Mixed(AdversarialModule, Theirs):
    def training_step(self, batch, batch_idx):
        attacked = self.attacked(batch, batch_idx)
        assert attacked.x is not attacked.x_adv
        self.seen.append((attacked.x_adv - attacked.x).abs().amax().item())
        loss = self.scale * cross_entropy(self(attacked.x_adv), attacked.y)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        self.log("own_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())
        return super().validation_step(batch, batch_idx)


def test_before_the_module_of_another_library():
    module = Mixed(scale=2.0)
    before = weights(module)
    lightning = fit(module, adversary(p="inf", delta=0.05, random_start=False))
    assert not torch.equal(before, weights(module))
    assert all(size == pytest.approx(0.05, rel=1e-4) for size in module.seen)
    assert {"own_acc", "val/clean_acc", "val/adv_acc"} <= set(lightning.callback_metrics)
    assert lightning.callback_metrics["own_acc"] == pytest.approx(lightning.callback_metrics["val/clean_acc"].item())


def test_without_an_adversary_the_images_are_clean():
    seen = []

    class Clean(Own):
        def training_step(self, batch, batch_idx):
            attacked = self.attacked(batch, batch_idx)
            seen.append(torch.equal(attacked.x_adv, batch[0]) and attacked.importance is None)
            return super().training_step(batch, batch_idx)

    logged = fit(Clean(), epochs=1).callback_metrics
    assert seen
    assert all(seen)
    assert {"val/clean_acc", "val/loss"} <= set(logged)


def test_a_warm_up_reaches_it_and_prediction_is_there():
    module = Own()
    lightning = fit(module, adversary(p="inf"), RadiusWarmup(epochs=2), epochs=1)
    assert lightning.callbacks[0].attack.ball.delta < 0.1
    logits = torch.cat(lightning.predict(module, loader(40, 20)))
    assert torch.equal(logits, module.eval()(digits(40)[0]))


def test_images_and_networks_are_looked_at_as_everywhere():
    class Probabilities(Own):
        def forward(self, x):
            return self.network(x).softmax(1)

    with pytest.raises(UserError, match="the network returns probabilities"):
        fit(Probabilities(), adversary(), epochs=1)


class Bare(L.LightningModule):
    """The attack alone, called in a training step; no class of this package."""

    def __init__(self):
        super().__init__()
        self.network = network()
        self.attack = WPGD(p=2, norm="inf", delta=0.1, steps=2, random_start=True)

    def training_step(self, batch, batch_idx):
        x, y = batch
        x_adv = self.attack(self.network, x, y, reducer=default_reducer()).x_adv
        loss = cross_entropy(self.network(x_adv), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def test_the_attack_alone_and_what_the_callback_says_to_such_a_module():
    module = Bare()
    logged = fit(module, limit_val_batches=0).callback_metrics
    assert torch.isfinite(logged["loss"])
    with pytest.raises(UserError) as refused:
        fit(module, adversary())
    said = str(refused.value)
    assert "make it class Bare(AdversarialModule) and train on self.attacked(batch, batch_idx).x_adv" in said
    assert "call an attack of wdro_train.attacks in training_step" in said
    assert "\n" not in said

"""A step looks at its batch once, whatever runs on it: every look is a transfer that the host waits for."""

from functools import partial

import pytest
import torch
from lightning import LightningDataModule
from shell import adversary, classifier, digits, fitted, loader, network, trainer
from torch.utils.data import DataLoader, TensorDataset

from wdro_train.attacks import KLPGD, WFGSM, WPGD, BoundaryAttack, Lagrangian, MinimalDistance
from wdro_train.objectives import Adversarial, FirstOrderPenalty, Standard, WTrades
from wdro_train.training.callbacks import DistributionalAdversary
from wdro_train.utils import contract
from wdro_train.utils.contract import already_checked, check_batch
from wdro_train.utils.errors import UserError

THREAT = {"p": 2, "norm": "inf", "delta": 0.1}


@pytest.fixture
def looks(monkeypatch):
    """The number of images in every batch that was looked at."""
    found = []
    look = contract._clamped

    def counted(x, *ends):
        found.append(len(x))
        return look(x, *ends)

    monkeypatch.setattr(contract, "_clamped", counted)
    return found


@pytest.mark.parametrize(
    ("objective", "attack"),
    [
        *((objective, WPGD) for objective in (Standard, Adversarial, WTrades, partial(FirstOrderPenalty, **THREAT))),
        *((Adversarial, attack) for attack in (WFGSM, BoundaryAttack, Lagrangian, KLPGD)),
        (Standard, BoundaryAttack),  # nobody asks for the attack
    ],
)
def test_a_training_batch_is_looked_at_once(looks, objective, attack):
    module = classifier(fitted(), objective=objective())
    trainer([DistributionalAdversary(attack(**THREAT))]).fit(module, loader(48, 16))
    assert looks == [16, 16, 16]


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize(("whole_set", "passes"), [(False, 1), (True, 2)])
def test_an_evaluation_batch_is_looked_at_once_a_pass(looks, stage, whole_set, passes):
    """Under three attacks, one of them a pool of two."""
    judge = adversary(whole_set=whole_set, distances=MinimalDistance(norm="inf", steps=2))
    getattr(trainer([judge]), stage)(classifier(fitted()), loader(40, 16), verbose=False)
    assert looks == passes * [16, 16, 8]


def test_only_the_very_batch_is_known():
    x, y = digits(8)
    batch = check_batch(x, y)
    with already_checked(batch):
        assert check_batch(batch.x, batch.y) is batch
        with pytest.raises(UserError, match="images range over"):
            check_batch(batch.x + 1, batch.y)
        with pytest.raises(UserError, match="one integer per image"):
            check_batch(batch.x, batch.y.float())
    assert check_batch(batch.x, batch.y) is not batch


def test_labels_without_output_are_refused_in_any_batch():
    """Also in one that comes after the network has been looked at."""
    x, y = digits(32)
    y[20] = 10
    with pytest.raises(UserError, match=r"labels range over \[\d, 10\] but the network has 10 outputs"):
        trainer([]).fit(classifier(network()), DataLoader(TensorDataset(x, y), batch_size=16))


@pytest.mark.parametrize("owner", ["module", "data module"])
def test_upsilon_is_measured_on_the_batches_that_are_judged(owner):
    """A hook that changes batches on their way to the device changes them in both passes, whoever has the hook."""

    def darker(self, batch, dataloader_idx):
        return [batch[0] / 2, batch[1]]

    class Data(LightningDataModule):
        def val_dataloader(self):
            return loader(41, 16, start=300)

    module, data = classifier(fitted()), Data()
    if owner == "module":
        module.on_before_batch_transfer = darker.__get__(module)
    else:
        data = type("Darker", (Data,), {"on_before_batch_transfer": darker})()
    logged = trainer([adversary()]).validate(module, datamodule=data, verbose=False)[0]
    x, y = digits(41, start=300)
    expected = WFGSM(**THREAT, loss="redlr")(fitted(), x / 2, y)
    assert logged["val/upsilon"] == pytest.approx(expected.upsilon.item(), rel=1e-6)
    assert logged["val/fgsm_spent"] == pytest.approx(
        expected.distances.square().mean().sqrt().item(), rel=1e-5
    )  # of the whole set: batches that are moved by an Upsilon of their own or of other images spend otherwise
    assert torch.equal(x, digits(41, start=300)[0])

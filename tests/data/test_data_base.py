"""Every data module: three disjoint sets, split and shuffled by seeds, shared among ranks."""

from functools import partial

import lightning as L
import pytest
import torch
from datafiles import image_set
from shell import adversary, classifier, fitted, loader, trainer
from shell import digits as tiny_digits
from torch.utils.data import DataLoader, IterableDataset

from wdro_train.data import (
    Digits,
    ImageArrays,
    ImageDataModule,
)
from wdro_train.objectives import Adversarial
from wdro_train.training.callbacks import ValidationHistory
from wdro_train.utils.errors import UserError

GRAY = {"shape": [1, 28, 28], "num_classes": 10, "mean": [0.3], "std": [0.4], "delta": {"linf": 0.1}}


def digits(**kwargs):
    return Digits(**GRAY | {"shape": [1, 8, 8], "val_fraction": 0.2} | kwargs)


def order(loader):
    return torch.cat([x.flatten(1) for x, _ in loader])


class InMemory(ImageDataModule):
    """A user's own data module."""

    def __init__(self, train, test, **kwargs):
        super().__init__(**kwargs)
        self.parts = train, test

    def load(self):
        return tuple(ImageArrays(torch.as_tensor(x).unsqueeze(1), torch.as_tensor(y).long()) for x, y in self.parts)


def test_split_depends_on_split_seed_alone():
    def val(**kwargs):
        return digits(**kwargs).arrays("val").images

    assert torch.equal(val(seed=0), val(seed=5))
    assert not torch.equal(val(split_seed=0), val(split_seed=1))
    assert torch.equal(digits(split_seed=0).arrays("test").images, digits(split_seed=1).arrays("test").images)


def test_order_is_a_function_of_seed_and_epoch():
    def epoch(seed, number, global_seed):
        torch.manual_seed(global_seed)
        loader = digits(seed=seed).train_dataloader()
        loader.sampler.set_epoch(number)
        return order(loader)

    assert torch.equal(epoch(0, 3, 1), epoch(0, 3, 2))
    for other in ((0, 4), (1, 3), (1, 2), (4, 0)):  # seed + epoch = 3 or 4 included: no shifted copies
        assert not torch.equal(epoch(0, 3, 1), epoch(*other, 1))


@pytest.mark.parametrize("name", ["val", "test"])
def test_evaluation_keeps_the_order_of_the_set(name):
    data = digits(eval_batch_size=100)
    arrays = data.arrays(name)
    assert torch.equal(order(getattr(data, f"{name}_dataloader")()) * 16, arrays.images.flatten(1).float())


def test_ranks_share_the_global_batch():
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    data = digits(batch_size=64)
    data.trainer = trainer
    assert data.train_dataloader().batch_size == 32
    assert data.train_dataloader().sampler.num_replicas == 2
    odd = digits(batch_size=33)
    odd.trainer = trainer
    with pytest.raises(UserError, match=r"33 images does not divide over 2 ranks; change data\.batch_size"):
        odd.train_dataloader()


def gray_sets(test_first=0):
    train, test = image_set(60, (28, 28), seed=1), image_set(20, (28, 28), seed=2)
    test[0][0, 0, 0] = test_first
    return {"train": train, "test": test}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [1, 32, 32]}, r"training images have shape \(1, 28, 28\), not data.shape=\(1, 32, 32\)"),
        ({"num_classes": 9}, r"training labels range over \[0, 9\], outside 0..8"),
        ({"val_fraction": 0.0}, "data.val_fraction=0.0 leaves a set empty"),
        ({"val_fraction": 1.5}, "data.val_fraction=1.5 leaves a set empty"),
        ({"val_fraction": 0.01}, "data.val_fraction=0.01 cannot split 60 training images by class"),
        ({"batch_size": 0}, "data.batch_size=0 holds no image"),
        ({"eval_batch_size": -1}, "data.eval_batch_size=-1 holds no image"),
    ],
)
def test_refusals(change, message):
    sets = gray_sets()
    with pytest.raises(UserError, match=message):
        InMemory(sets["train"], sets["test"], **GRAY | {"val_fraction": 0.25} | change).setup()


class Stream(IterableDataset):
    """Batches or images of digits, in their order."""

    def __init__(self, batch_size=None):
        self.batch_size = batch_size

    def __iter__(self):
        x, y = tiny_digits(41, start=300)
        if self.batch_size is None:
            return iter(zip(x, y, strict=True))
        return iter(zip(x.split(self.batch_size), y.split(self.batch_size), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("own_batches", [False, True])
def test_streams_with_workers_that_live_on(own_batches):
    """The whole set is read once more for Upsilon, from a dataset that cannot be sampled and may batch by itself."""
    workers = {"num_workers": 1, "persistent_workers": True}
    streams = DataLoader(Stream(16), batch_size=None, **workers) if own_batches else DataLoader(Stream(), 16, **workers)
    history = ValidationHistory()
    module = classifier(fitted(), objective=Adversarial(), optimizer=partial(torch.optim.SGD, lr=0.0))
    trainer([adversary(whole_set=True), history], max_epochs=2).fit(module, loader(32, 16), streams)
    logged = trainer([adversary()]).validate(classifier(fitted()), loader(41, 16, start=300), verbose=False)[0]
    wanted = {key.removeprefix("val/"): value for key, value in logged.items()}
    assert len(history.epochs) == 2
    for values in history.epochs.values():
        assert values == pytest.approx(wanted, rel=1e-6)

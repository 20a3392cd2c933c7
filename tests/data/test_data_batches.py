"""Random transforms of training images depend on seed, epoch and image alone."""

import lightning as L
import pytest
import torch
from torchvision.transforms import v2

from wdro_train.data import Digits

SETUP = {"shape": [3, 16, 16], "num_classes": 2, "mean": [0.5] * 3, "std": [0.2] * 3, "delta": {"linf": "4/255"}}
GRAY = SETUP | {"shape": [1, 8, 8], "num_classes": 10, "mean": [0.3], "std": [0.4], "val_fraction": 0.2}
AUGMENT = {"crop": v2.RandomCrop([8, 8], padding=2), "policy": v2.AutoAugment(), "erase": v2.RandomErasing(p=1.0)}


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return torch.cat([torch.cat([x.flatten(1), y[:, None].float()], 1) for x, y in loader])


@pytest.mark.slow
def test_augmentation_is_of_seed_epoch_and_image_alone():
    def digits(**kwargs):
        return Digits(**GRAY | {"augment": AUGMENT, "batch_size": 383} | kwargs)

    torch.manual_seed(1)
    first = epoch(digits(), 3)
    assert torch.equal(epoch(digits(num_workers=2), 3), first)
    torch.manual_seed(2)
    assert torch.equal(epoch(digits(), 3), first)
    before = torch.get_rng_state()
    digits().train_dataloader().dataset[3, 5]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(epoch(digits(), 4), first)
    assert not torch.equal(epoch(digits(augment=None), 3), first)
    assert first.min() == 0
    assert first[:, :-1].max() <= 1


@pytest.mark.slow
def test_epochs_differ_for_workers_that_live_on():
    data = Digits(**GRAY, augment={"erase": v2.RandomErasing(p=1.0)}, num_workers=1, batch_size=1149)
    loader = data.train_dataloader()
    seen = []
    for number in (0, 1, 0):
        loader.sampler.set_epoch(number)
        x, _ = next(iter(loader))
        seen.append(x.flatten(1).sum(1).sort().values)
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_only_training_images_are_augmented_and_stay_in_the_box():
    data = Digits(**GRAY, augment={"brighter": lambda x: x + 0.75, "none": None})
    x, _ = next(iter(data.train_dataloader()))
    assert (x.min(), x.max()) == (0.75, 1)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader))[0].min() == 0


@pytest.mark.slow
def test_lightning_keeps_the_sampler():
    class Watch(L.LightningModule):
        def training_step(self, batch):
            seen.append(batch[0])

        def configure_optimizers(self):
            return None

    seen = []
    data = Digits(**GRAY, augment={"erase": v2.RandomErasing(p=1.0)}, batch_size=1149)
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Watch(), datamodule=data)
    alone = Digits(**GRAY, augment={"erase": v2.RandomErasing(p=1.0)}, batch_size=1149)
    for number, x in enumerate(seen):
        assert torch.equal(x.flatten(1), epoch(alone, number)[:, :-1])


def test_augmentation_leaves_the_generators_of_gpus_alone(monkeypatch):
    """Seeding them for every image would decide the random starts of attacks, and takes longer than the transforms."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a generator of a GPU is seeded"))
    Digits(**GRAY, augment=AUGMENT).train_dataloader().dataset.__getitems__([(0, 1), (0, 2)])

"""Images in files, and what is done to those of training."""

import json

import lightning as L
import pytest
import torch
from datafiles import write_folder
from PIL import Image
from shell import run
from torchvision.transforms import v2

from wdro_train.data import Digits, HuggingFaceDataModule, ImageFolderDataModule
from wdro_train.errors import UserError

SETUP = {"shape": [3, 16, 16], "num_classes": 2, "mean": [0.5] * 3, "std": [0.2] * 3, "delta": {"linf": "4/255"}}
FOLDERS = {"train": "train", "val": "val", "test": "test"}
GRAY = SETUP | {"shape": [1, 8, 8], "num_classes": 10, "mean": [0.3], "std": [0.4], "val_fraction": 0.2}


def folder(root, **kwargs):
    return ImageFolderDataModule(root=str(root), folders=FOLDERS, **SETUP | {"val_fraction": 0.25} | kwargs)


def test_all_three_folders(tmp_path):
    data = folder(write_folder(tmp_path, ("train", "val", "test"), n=5))
    for name in FOLDERS:
        arrays = data.arrays(name)
        assert torch.bincount(arrays.labels).tolist() == [5, 5]
        x = arrays.batch(torch.arange(10))
        assert x.shape == (10, 3, 16, 16)
        assert ((x.flatten(1).mean(1) > 0.5).long() == arrays.labels).all()  # dogs are bright, whatever the format


def test_missing_folders_are_split_off(tmp_path):
    data = folder(write_folder(tmp_path, n=16))
    paths = {name: {data.arrays(name).read.paths[k] for k in data.arrays(name).positions} for name in FOLDERS}
    assert sorted(map(len, paths.values())) == [6, 8, 18]
    assert len(set.union(*paths.values())) == 32
    again = folder(tmp_path, split_seed=0).arrays("val").positions
    assert torch.equal(again, data.arrays("val").positions)
    assert not torch.equal(again, folder(tmp_path, split_seed=1).arrays("val").positions)


def test_pixels_are_those_of_the_file(tmp_path):
    """Shorter side to `resize`, then the centre: Pillow's own arithmetic."""
    write_folder(tmp_path, ("test",), n=1)
    arrays = folder(tmp_path, resize=18).arrays("test")
    image = Image.open(tmp_path / "test/cat/000.png").resize((21, 18), Image.Resampling.BILINEAR)
    expected = v2.functional.pil_to_tensor(image.crop((2, 1, 18, 17))).float() / 255
    assert torch.equal(arrays.batch(torch.tensor([0]))[0], expected)


def test_images_are_decoded_when_needed(tmp_path):
    write_folder(tmp_path, n=8)
    data = folder(tmp_path)
    data.setup()
    (tmp_path / "train" / "dog" / "007.JPEG").write_bytes(b"not an image")
    everything = data.arrays("train")._replace(positions=torch.arange(15, 3, -1))
    with pytest.raises(UserError, match=r"007.JPEG cannot be read as an image"):
        everything.batch(torch.arange(12))


def test_a_list_chooses_test_images_in_its_order(tmp_path):
    write_folder(tmp_path, ("test",), classes=("n01440764", "n01443537"), n=4)
    names = ["n01443537/003.JPEG", "n01440764/000.png", "n01440764/003.JPEG"]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    arrays = folder(tmp_path, subset=str(tmp_path / "list.txt")).arrays("test")
    assert arrays.labels.tolist() == [1, 0, 0]
    whole = folder(tmp_path).arrays("test")
    assert torch.equal(arrays.batch(torch.arange(3)), whole.batch(torch.tensor([7, 0, 3])))
    (tmp_path / "list.txt").write_text("n01440764/000.png\nn01440764/999.png\n")
    with pytest.raises(UserError, match=r"1 of 2 images of .*, such as n01440764/999.png"):
        folder(tmp_path, subset=str(tmp_path / "list.txt")).arrays("test")


@pytest.mark.parametrize(
    ("parts", "message"),
    [((), "has no folder train, val, test; put one folder a class"), (("test",), "no train set, only test")],
)
def test_what_is_missing_is_said(parts, message, tmp_path):
    with pytest.raises(UserError, match=message):
        folder(write_folder(tmp_path, parts)).arrays("train")


def test_other_classes_are_refused(tmp_path):
    write_folder(tmp_path, ("train",))
    write_folder(tmp_path, ("test",), classes=("cat", "cow"))
    with pytest.raises(UserError, match="test has other classes: cow, dog"):
        folder(tmp_path).setup()


def test_huggingface(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_folder(tmp_path / "files", ("train", "test"), n=8)
    made = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "files"), cache_dir=str(tmp_path / "cache"))
    made.save_to_disk(str(tmp_path / "saved"))
    arguments = {"splits": {"train": "train", "val": None, "test": "test"}, **SETUP, "val_fraction": 0.25}
    reference = folder(tmp_path / "files")
    for name in (tmp_path / "saved", tmp_path / "files"):
        data = HuggingFaceDataModule(name=str(name), **arguments)
        assert [len(data.arrays(part).labels) for part in FOLDERS] == [12, 4, 16]
        rows = torch.arange(16)
        x = data.arrays("test").batch(rows).flatten(1)
        assert sorted(map(tuple, x.tolist())) == sorted(
            map(tuple, reference.arrays("test").batch(rows).flatten(1).tolist())
        )
    with pytest.raises(UserError, match="has no column picture, only image, label"):
        HuggingFaceDataModule(name=str(tmp_path / "saved"), image="picture", **arguments).setup()


AUGMENT = {"crop": v2.RandomCrop([8, 8], padding=2), "policy": v2.AutoAugment(), "erase": v2.RandomErasing(p=1.0)}


def epoch(data, number):
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return torch.cat([torch.cat([x.flatten(1), y[:, None].float()], 1) for x, y in loader])


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


def test_newcomers_path(tmp_path):
    """Own folder: train, judge the checkpoint, nothing but the folder named."""
    write_folder(tmp_path / "photos", ("train", "test"), classes=("cat", "cow", "dog"), n=8)
    quick = ["data=image_folder", "data.root=photos", "data.shape=[3,16,16]", "data.val_fraction=0.25", "logger=none"]
    quick += ["augment=autoaugment", "trainer.max_epochs=1", "callbacks.images=null", "trainer.accelerator=cpu"]
    trained = run("train.py", *quick, "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "18 train, 6 val, 24 test images" in trained.stdout
    judge = ["ckpt_path=run/checkpoints/best.ckpt", "poster=null", "distances.steps=2", "hydra.run.dir=out"]
    judged = run("evaluate.py", *judge, cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    assert json.loads((tmp_path / "out/report.json").read_text())["models"][0]["images"] == 24
    lost = run("train.py", *quick, "data.root=nowhere", cwd=tmp_path)
    assert lost.returncode == 1
    assert "data.root=nowhere has no folder train, test; put one folder a class in train/" in lost.stderr

import gzip
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from datafiles import image_set, write_cifar, write_idx
from PIL import Image
from shell import adversary, classifier, fitted, loader, trainer
from shell import digits as tiny_digits
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, IterableDataset
from torchvision import datasets

from wdro_train.data import (
    Digits,
    GzipDataModule,
    ImageArrays,
    ImageDataModule,
    ImageFiles,
    ImageFolderDataModule,
    TorchvisionDataModule,
    content_digest,
)
from wdro_train.objectives import Adversarial
from wdro_train.training.callbacks import ValidationHistory
from wdro_train.utils.errors import UserError

PARTS = ("train", "val", "test")
GRAY = {"shape": [1, 28, 28], "num_classes": 10, "mean": [0.3], "std": [0.4], "delta": {"linf": 0.1}}
COLOUR = GRAY | {"shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def digits(**kwargs):
    return Digits(**GRAY | {"shape": [1, 8, 8], "val_fraction": 0.2} | kwargs)


def multiset(images, labels):
    return sorted((bytes(np.asarray(x, dtype=np.uint8)), int(y)) for x, y in zip(images, labels, strict=True))


def order(loader):
    return torch.cat([x.flatten(1) for x, _ in loader])


class InMemory(ImageDataModule):
    """A user's own data module."""

    def __init__(self, train, test, **kwargs):
        super().__init__(**kwargs)
        self.parts = train, test

    def load(self):
        return tuple(ImageArrays(torch.as_tensor(x).unsqueeze(1), torch.as_tensor(y).long()) for x, y in self.parts)


def test_digits_are_partitioned():
    data, original = digits(), load_digits()
    sets = [data.arrays(name) for name in PARTS]
    assert [len(s.labels) for s in sets] == [1149, 288, 360]
    joined = [pair for s in sets for pair in multiset(s.images, s.labels)]
    assert sorted(joined) == multiset(original.images, original.target)
    shares = np.bincount(original.target) / len(original.target)
    for s in sets:
        assert torch.bincount(s.labels).numpy() / len(s.labels) == pytest.approx(shares, abs=0.005)


def test_images_are_scaled_to_the_unit_interval():
    x, y = next(iter(digits(batch_size=1149).train_dataloader()))
    assert x.dtype == torch.float32
    assert x.shape == (1149, 1, 8, 8)
    assert (x.min(), x.max()) == (0, 1)
    assert y.dtype == torch.int64
    one, label = digits().train_dataloader().dataset[0]
    assert torch.equal(one, digits().arrays("train").images[0] / 16)
    assert label == digits().arrays("train").labels[0]


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


def test_fashion_mnist_layouts(tmp_path):
    """torchvision's layout wins over .gz files in root, and those over the system package's folder."""
    package, root = tmp_path / "package", tmp_path / "root"
    module = {"name": "FashionMNIST", "root": str(root), "gz_folder": str(package), "val_fraction": 0.25, **GRAY}
    for mark, (folder, packed) in enumerate(
        [(package, True), (root, True), (root / "FashionMNIST" / "raw", False)], start=1
    ):
        sets = gray_sets(mark)
        write_idx(folder, sets, packed)
        data = GzipDataModule(**module)
        assert [len(data.arrays(name).labels) for name in PARTS] == [45, 15, 20]
        assert torch.equal(data.arrays("test").images[:, 0], torch.as_tensor(sets["test"][0]))
        assert torch.equal(data.arrays("test").labels, torch.as_tensor(sets["test"][1]).long())
        joined = [p for name in ("train", "val") for p in multiset(data.arrays(name).images, data.arrays(name).labels)]
        assert sorted(joined) == multiset(*sets["train"])


def test_mnist_reads_its_own_folder(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", gray_sets(7))
    data = GzipDataModule(name="MNIST", root=str(tmp_path), val_fraction=0.25, **GRAY)
    assert data.arrays("test").images[0, 0, 0, 0] == 7


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_debian_fashion_mnist(tmp_path):
    data = GzipDataModule(name="FashionMNIST", root=str(tmp_path), gz_folder=str(DEBIAN), **GRAY)
    assert [len(data.arrays(name).labels) for name in PARTS] == [54000, 6000, 10000]
    assert torch.bincount(data.arrays("val").labels).tolist() == [600] * 10
    assert data.arrays("train").images.float().mean() / 255 == pytest.approx(0.286, abs=1e-3)


@pytest.mark.parametrize(("name", "key", "classes"), [("CIFAR10", "labels", 10), ("CIFAR100", "fine_labels", 100)])
def test_cifar(name, key, classes, tmp_path, monkeypatch):
    train, test = image_set(4 * classes, (32, 32, 3), classes), image_set(classes, (32, 32, 3), classes, seed=1)
    write_cifar(tmp_path, getattr(datasets, name), {"train": train, "test": test}, key, monkeypatch)
    arguments = COLOUR | {"name": name, "root": str(tmp_path), "num_classes": classes, "val_fraction": 0.25}
    data = TorchvisionDataModule(**arguments)
    assert [len(data.arrays(part).labels) for part in PARTS] == [3 * classes, classes, classes]
    assert torch.equal(data.arrays("test").images.permute(0, 2, 3, 1), torch.as_tensor(test[0]))
    assert torch.equal(data.arrays("test").labels, torch.as_tensor(test[1]).long())
    (tmp_path / getattr(datasets, name).base_folder / getattr(datasets, name).test_list[0][0]).write_bytes(b"cut")
    with pytest.raises(UserError, match=f"{name} is missing or damaged"):
        TorchvisionDataModule(**arguments).setup()


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"])
def test_missing_data_says_how_to_get_it(name, tmp_path):
    kind = GzipDataModule if "MNIST" in name else TorchvisionDataModule
    extra = {"package": "dataset-x", "gz_folder": str(tmp_path)} if name == "FashionMNIST" else {}
    with pytest.raises(UserError) as caught:
        kind(name=name, root=str(tmp_path / "nowhere"), **GRAY, **extra).setup()
    text = str(caught.value)
    assert f"{name} is missing or damaged under {tmp_path / 'nowhere'}; run once with data.download=true" in text
    assert ("apt install dataset-x" in text) == bool(extra)


def test_damaged_files(tmp_path):
    write_idx(tmp_path, gray_sets(), packed=True)
    module = {"name": "MNIST", "root": str(tmp_path), **GRAY}
    images = tmp_path / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for content in (whole[:-100], b"<html>not found</html>"):
        images.write_bytes(content)
        with pytest.raises(UserError, match=f"{images} is damaged .*; fetch it again"):
            GzipDataModule(**module).setup()
    for content in (b"", b"<html>", gzip.decompress(whole)[:-100]):
        images.write_bytes(gzip.compress(content))
        with pytest.raises(UserError, match="missing or damaged"):
            GzipDataModule(**module).setup()


def test_download_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    data = GzipDataModule(name="MNIST", root=str(tmp_path), download=True, **GRAY)
    with pytest.raises(UserError, match=r"MNIST could not be downloaded \(.+\); put its files under"):
        data.prepare_data()


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


def test_labels_must_fit_the_images():
    (x, y), test = gray_sets().values()
    with pytest.raises(UserError, match="60 training images but 59 labels"):
        InMemory((x, y[:-1]), test, **GRAY).setup()
    with pytest.raises(UserError, match=r"test labels range over \[-1, 9\]"):
        InMemory(
            (x, y), (test[0], np.where(test[1] == 3, -1, test[1].astype(int))), **GRAY | {"val_fraction": 0.25}
        ).setup()


LABEL_TYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.int64, np.uint8, np.int32, list]


class OfUser(ImageDataModule):
    """A user's own data module that checks nothing."""

    def __init__(self, *parts, **kwargs):
        super().__init__(**GRAY | {"val_fraction": 0.25} | kwargs)
        self.parts = parts

    def load(self):
        return self.parts


def of_user(change_labels=lambda y: y, change_images=lambda x: x, **kwargs):
    sets = gray_sets()
    parts = [
        ImageArrays(change_images(torch.as_tensor(x)[:, None]), change_labels(torch.as_tensor(y)), **kwargs)
        for x, y in (sets["train"], sets["test"])
    ]
    return OfUser(*parts)


@pytest.mark.parametrize("kind", LABEL_TYPES, ids=str)
def test_labels_of_any_integer_type(kind):
    def change(y):
        return y.to(kind) if isinstance(kind, torch.dtype) else y.tolist() if kind is list else y.numpy().astype(kind)

    data, plain = of_user(change), of_user()
    for name in PARTS:
        assert data.arrays(name).labels.dtype == torch.int64
        assert torch.equal(data.arrays(name).labels, plain.arrays(name).labels)
    for x, y in data.train_dataloader():
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y.float(), "training labels are float32, not class numbers; give one whole number an image"),
        (lambda y: list(map(str, y)), "training labels are <U"),
        (lambda y: torch.eye(10)[y.long()], r"training labels are float32 of shape \[60, 10\]"),
    ],
)
def test_labels_that_are_no_class_numbers(change, message):
    with pytest.raises(UserError, match=message):
        of_user(change).setup()


@pytest.mark.parametrize(
    ("change", "scale", "message"),
    [
        (lambda x: x, 128.0, r"training images range over \[0, 255\], outside \[0, 128\]"),
        (lambda x: x.to(torch.uint16) * 2, 255.0, r"range over \[0, 510\], outside \[0, 255\]"),
        (lambda x: x.float() - 1, 255.0, r"range over \[-1, 254\], outside \[0, 255\]"),
        (lambda x: x.float() / 255, 255.0, r"are floating-point numbers in \[0, 1\] already.*scale=1"),
        (lambda x: x.float() * torch.nan, 255.0, r"range over \[nan, nan\]"),
        (lambda x: x[:0], 255.0, "0 training images but 60 labels"),
        (lambda x: x.float() / 255, 1.0, None),
        (lambda x: x.to(torch.int32) * 257, 65535.0, None),
        (lambda x: x.numpy(), 255.0, None),
    ],
)
def test_pixels_fit_their_scale(change, scale, message):
    data = of_user(change_images=change, scale=scale)
    if message is not None:
        with pytest.raises(UserError, match=message):
            data.setup()
        return
    x, _ = next(iter(data.test_dataloader()))
    wanted, _ = next(iter(of_user().test_dataloader()))
    assert torch.allclose(x, wanted, atol=1e-6)


def test_an_empty_set_is_named():
    (x, y), _ = gray_sets().values()
    train = ImageArrays(torch.as_tensor(x)[:, None], torch.as_tensor(y))
    with pytest.raises(UserError, match="the test set has no images"):
        OfUser(train, train.take(torch.arange(0))).setup()


class Stream(IterableDataset):
    """Batches or images of digits, in their order."""

    def __init__(self, batch_size=None):
        self.batch_size = batch_size

    def __iter__(self):
        x, y = tiny_digits(41, start=300)
        if self.batch_size is None:
            return iter(zip(x, y, strict=True))
        return iter(zip(x.split(self.batch_size), y.split(self.batch_size), strict=True))


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


def stored(folder, images, labels):
    """A set of files with these pixels."""
    for number, image in enumerate(images):
        (folder / f"{labels[number]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()[0]).save(folder / f"{labels[number]}" / f"{number}.png")
    data = {"shape": (1, 8, 8), "num_classes": 2, "mean": [0.0], "std": [1.0], "delta": {"linf": 0.1}}
    return ImageFolderDataModule(root=folder.parent, folders={"val": folder.name}, **data).arrays("val")


@pytest.mark.parametrize("kind", ["arrays", "files", "decoded"])
def test_other_images_under_the_same_name_have_another_digest(kind, tmp_path):
    images = torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1, 0, 1])

    def digest(name, images, labels):
        if kind == "files":
            return content_digest(stored(tmp_path / name, images, labels.tolist()))
        if kind == "arrays":
            return content_digest(ImageArrays(images, labels))
        return content_digest(ImageFiles(lambda k: images[k], labels, torch.arange(6)))

    first = digest("first", images, labels)
    assert digest("again", images.clone(), labels.clone()) == first
    painted = images.clone()
    painted[5, 0, 7, 7] ^= 1
    assert digest("painted", painted, labels) != first
    assert digest("swapped", images, 1 - labels) != first

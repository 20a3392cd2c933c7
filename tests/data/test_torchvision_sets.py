"""Real files of every layout that is read; what is missing or damaged is said in one sentence."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from datafiles import image_set, write_cifar, write_idx
from torchvision import datasets

from wdro_train.data import (
    GzipDataModule,
    TorchvisionDataModule,
)
from wdro_train.utils.errors import UserError

PARTS = ("train", "val", "test")
GRAY = {"shape": [1, 28, 28], "num_classes": 10, "mean": [0.3], "std": [0.4], "delta": {"linf": 0.1}}
COLOUR = GRAY | {"shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def multiset(images, labels):
    return sorted((bytes(np.asarray(x, dtype=np.uint8)), int(y)) for x, y in zip(images, labels, strict=True))


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

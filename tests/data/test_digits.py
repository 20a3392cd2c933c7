"""The handwritten digits of scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from wdro_train.data import (
    Digits,
)

PARTS = ("train", "val", "test")
GRAY = {"shape": [1, 28, 28], "num_classes": 10, "mean": [0.3], "std": [0.4], "delta": {"linf": 0.1}}


def digits(**kwargs):
    return Digits(**GRAY | {"shape": [1, 8, 8], "val_fraction": 0.2} | kwargs)


def multiset(images, labels):
    return sorted((bytes(np.asarray(x, dtype=np.uint8)), int(y)) for x, y in zip(images, labels, strict=True))


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

"""Sets of users: labels of any integer type, and one sentence for everything that is no labelled image."""

import numpy as np
import pytest
import torch
from datafiles import image_set

from wdro_train.data import (
    ImageArrays,
    ImageDataModule,
)
from wdro_train.utils.errors import UserError

PARTS = ("train", "val", "test")
GRAY = {"shape": [1, 28, 28], "num_classes": 10, "mean": [0.3], "std": [0.4], "delta": {"linf": 0.1}}


class InMemory(ImageDataModule):
    """A user's own data module."""

    def __init__(self, train, test, **kwargs):
        super().__init__(**kwargs)
        self.parts = train, test

    def load(self):
        return tuple(ImageArrays(torch.as_tensor(x).unsqueeze(1), torch.as_tensor(y).long()) for x, y in self.parts)


def gray_sets(test_first=0):
    train, test = image_set(60, (28, 28), seed=1), image_set(20, (28, 28), seed=2)
    test[0][0, 0, 0] = test_first
    return {"train": train, "test": test}


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

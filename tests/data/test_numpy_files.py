"""Test sets in two .npy files: every layout and type is the same images, and what does not fit is refused."""

import numpy as np
import pytest
import torch

from wdro_train.data import NumpyDataModule
from wdro_train.utils.errors import UserError

COLOUR = {"shape": [3, 4, 5], "num_classes": 3, "mean": [0.0], "std": [1.0], "delta": {"linf": 0.1, "l2": 1.0}}


def images(n=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 4, 5), dtype=np.uint8)


def module(folder, x, y, **options):
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return NumpyDataModule(str(folder / "x.npy"), str(folder / "y.npy"), **COLOUR | options)


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x,
        lambda x: np.moveaxis(x, 1, -1),
        lambda x: (x / 255).astype(np.float32),
        lambda x: np.moveaxis(x / 255, 1, -1),
    ],
)
def test_layouts_and_types_are_the_same_images(form, tmp_path):
    x, y = images(), np.array([[0], [1], [2], [2], [1], [0]])
    found = module(tmp_path, form(x), y).arrays("test")
    torch.testing.assert_close(found.batch(torch.arange(6)), torch.from_numpy(x).float() / 255)
    assert found.labels.tolist() == [0, 1, 2, 2, 1, 0]


def test_grey_images_may_have_no_channel(tmp_path):
    x = images()[:, 0]
    found = module(tmp_path, x, np.arange(6) % 3, shape=[1, 4, 5]).arrays("test")
    assert found.batch(torch.arange(6)).shape == (6, 1, 4, 5)


def test_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match="no train set, only test"):
        module(tmp_path, images(), np.arange(6) % 3).arrays("train")


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (images(), np.arange(5) % 3, r"not 5 images of data.shape=\[3, 4, 5\]"),
        (images()[:, :2], np.arange(6) % 3, r"has the shape \[6, 2, 4, 5\]"),
        (images(), np.arange(6), "outside 0..2"),
        (images(), np.arange(6) / 2, "not class numbers"),
        (images() / 100, np.arange(6) % 3, "pixels from 0 to 2.55"),
        (images(0), np.arange(0), "holds no label"),
        (np.array([{"a": 1}], dtype=object), np.arange(1), "data.images=.* cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(x, y, says, tmp_path):
    with pytest.raises(UserError, match=says):
        module(tmp_path, x, y).arrays("test")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data.images=nowhere.npy cannot be read"):
        NumpyDataModule("nowhere.npy", "y.npy", **COLOUR).arrays("test")

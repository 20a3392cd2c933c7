"""In which order images are served: balanced by class where they are stored class by class."""

import torch
from datafiles import write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from wdro_train.data import ImageFolderDataModule, describe_sample
from wdro_train.data.order import balanced_order
from wdro_train.evaluation.networks import load_arrays

SETUP = {"shape": [3, 16, 16], "num_classes": 2, "mean": [0.5] * 3, "std": [0.2] * 3, "delta": {"linf": "4/255"}}
FOLDERS = {"train": "train", "val": "val", "test": "test"}
GRAY = SETUP | {"shape": [1, 8, 8], "num_classes": 10, "mean": [0.3], "std": [0.4], "val_fraction": 0.2}


def folder(root, **kwargs):
    return ImageFolderDataModule(root=str(root), folders=FOLDERS, **SETUP | {"val_fraction": 0.25} | kwargs)


def load_limited(root, limit, split="test", **kwargs):
    target = "wdro_train.data.ImageFolderDataModule"
    return load_arrays(
        {"data": {"_target_": target, "root": str(root), "folders": FOLDERS, **SETUP, **kwargs}}, split, limit
    )


@settings(max_examples=50, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 5))
def test_every_beginning_is_balanced(labels, seed):
    labels = torch.as_tensor(sorted(labels))
    order = balanced_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    assert torch.equal(order, balanced_order(labels, seed))
    sizes = torch.bincount(labels, minlength=5)
    for kept in range(1, len(labels) + 1):
        counts = torch.bincount(labels[order[:kept]], minlength=5)
        assert ((counts - sizes * kept / len(labels)).abs() <= 3).all()
        if len(set(sizes[sizes > 0].tolist())) == 1:
            assert counts[sizes > 0].max() - counts[sizes > 0].min() <= 1


def test_the_first_few_images_are_a_fair_sample(tmp_path):
    """A folder is sorted by class; its first eight images would be of one class."""
    write_folder(tmp_path, ("train", "val", "test"), n=20)
    for split in FOLDERS:
        some = load_limited(tmp_path, 8, split)
        assert torch.bincount(some.labels).tolist() == [4, 4]
        assert torch.equal(some.positions, load_limited(tmp_path, 8, split).positions)
        assert torch.equal(load_limited(tmp_path, 12, split).positions[:8], some.positions)
        assert describe_sample(some, 8) == "drawn with seed 0, balanced by class"
        assert describe_sample(load_limited(tmp_path, None, split), None) == "all"
        assert describe_sample(load_limited(tmp_path, 99, split), 99) == "all"
    _, y = next(iter(folder(tmp_path, eval_batch_size=10).val_dataloader()))  # limit_val_batches=1 takes no more
    assert torch.bincount(y).tolist() == [5, 5]


def test_sets_in_memory_keep_their_published_order():
    config = {"data": {"_target_": "wdro_train.data.Digits", **GRAY}}
    some, whole = (load_arrays(config, "test", limit) for limit in (50, None))
    assert torch.equal(some.images, whole.images[:50])
    assert describe_sample(some, 50) == "the first"


def test_the_split_is_that_of_earlier_versions(tmp_path):
    """Serving in a drawn order must not move an image from the training set of an old checkpoint to its test."""
    data = folder(write_folder(tmp_path, n=16))
    held_out = {k: sorted(data.arrays(k).positions.tolist()) for k in ("val", "test")}
    assert held_out == {"val": [10, 11, 13, 18, 19, 24], "test": [0, 3, 5, 12, 17, 22, 23, 29]}

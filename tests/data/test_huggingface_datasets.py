"""Datasets of Hugging Face."""

import json

import pytest
import torch
from datafiles import write_folder

from wdro_train.data import HuggingFaceDataModule, ImageFolderDataModule
from wdro_train.utils.errors import UserError

SETUP = {"shape": [3, 16, 16], "num_classes": 2, "mean": [0.5] * 3, "std": [0.2] * 3, "delta": {"linf": "4/255"}}
FOLDERS = {"train": "train", "val": "val", "test": "test"}


def folder(root, **kwargs):
    return ImageFolderDataModule(root=str(root), folders=FOLDERS, **SETUP | {"val_fraction": 0.25} | kwargs)


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


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["cat", "dog"] * 2, "labels are <U3, not class numbers"),
        ([0.0, 1.0] * 2, "labels are float64, not class numbers"),
        ([0, None] * 2, "labels are object, not class numbers"),
        ([1, 2] * 2, r"range over \[1, 2\] and are never 0"),
        ([0, 2] * 2, r"range over \[0, 2\] and are never 1"),
        ([0, 1] * 2, None),
        ([False, True] * 2, None),
    ],
)
def test_huggingface_labels(labels, message, tmp_path):
    pytest.importorskip("datasets")
    for part in ("train", "test"):
        write_folder(tmp_path / "set", (part,), classes=("all",), n=len(labels))
        files = sorted((tmp_path / "set" / part / "all").iterdir())
        rows = [{"file_name": f"all/{file.name}", "label": y} for file, y in zip(files, labels, strict=True)]
        (tmp_path / "set" / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = SETUP | {"splits": {"train": "train", "val": None, "test": "test"}, "val_fraction": 0.5}
    data = HuggingFaceDataModule(name=str(tmp_path / "set"), **arguments)
    if message is not None:
        with pytest.raises(UserError, match=message):
            data.setup()
        return
    assert sorted(data.arrays("test").labels.tolist()) == [0, 0, 1, 1]
    assert data.arrays("train").labels.dtype == torch.int64
    with pytest.raises(UserError, match=r"image 0 of .*set train is of type int, not an image|of type bool"):
        HuggingFaceDataModule(name=str(tmp_path / "set"), image="label", **arguments).setup()


def test_huggingface_with_other_classes(tmp_path):
    pytest.importorskip("datasets")
    write_folder(tmp_path, ("train", "test"), classes=("cat", "cow", "dog"), n=2)
    splits = {"train": "train", "val": None, "test": "test"}
    with pytest.raises(UserError, match=r"has 3 classes, not data.num_classes=2; set data.num_classes=3"):
        HuggingFaceDataModule(name=str(tmp_path), splits=splits, **SETUP).setup()

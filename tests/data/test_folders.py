"""Folders of images: sets, classes, lists, and everything that a folder may hold besides."""

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from datafiles import write_folder
from PIL import Image
from shell import run
from torchvision.transforms import v2

from wdro_train.config.resolvers import count_folders
from wdro_train.data import ImageFolderDataModule
from wdro_train.data.decoding import UnreadableImageError, open_image
from wdro_train.data.digest import content_digest
from wdro_train.evaluation.networks import load_arrays
from wdro_train.utils.errors import UserError

SETUP = {"shape": [3, 16, 16], "num_classes": 2, "mean": [0.5] * 3, "std": [0.2] * 3, "delta": {"linf": "4/255"}}
FOLDERS = {"train": "train", "val": "val", "test": "test"}


def folder(root, **kwargs):
    return ImageFolderDataModule(root=str(root), folders=FOLDERS, **SETUP | {"val_fraction": 0.25} | kwargs)


def load_limited(root, limit, split="test", **kwargs):
    target = "wdro_train.data.ImageFolderDataModule"
    return load_arrays(
        {"data": {"_target_": target, "root": str(root), "folders": FOLDERS, **SETUP, **kwargs}}, split, limit
    )


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
    row = (arrays.positions == 0).nonzero()[0]
    image = Image.open(tmp_path / "test/cat/000.png").resize((21, 18), Image.Resampling.BILINEAR)
    expected = v2.functional.pil_to_tensor(image.crop((2, 1, 18, 17))).float() / 255
    assert torch.equal(arrays.batch(row)[0], expected)


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
    rows = [whole.positions.tolist().index(k) for k in (7, 0, 3)]
    assert torch.equal(arrays.batch(torch.arange(3)), whole.batch(torch.tensor(rows)))
    assert load_limited(tmp_path, 2, subset=str(tmp_path / "list.txt")).positions.tolist() == [7, 0]
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


def cut(path, share):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_permissions(tmp_path):
    path = tmp_path / "photo.png"
    cut(path, 1)
    path.chmod(0)
    with pytest.raises(UserError, match=r"photo.png cannot be read as an image \(Permission denied\)"):
        open_image(path)
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="closed cannot be read"):
        count_folders(str(tmp_path), "closed")


def test_loader_processes_hand_on_the_sentence(tmp_path):
    data = folder(write_folder(tmp_path, ("train", "val", "test"), n=8), num_workers=1, eval_batch_size=4)
    data.setup()
    (tmp_path / "val" / "dog" / "003.JPEG").write_bytes(b"")
    with pytest.raises(UnreadableImageError) as caught:
        list(data.val_dataloader())
    assert str(caught.value) == (
        f"{tmp_path}/val/dog/003.JPEG cannot be read as an image (it is empty or in no format that Pillow knows); "
        "mend or remove it"
    )


JUNK = [".ipynb_checkpoints", "__MACOSX", ".git", ".hidden", "@eaDir"]


def test_what_systems_leave_is_no_class_and_no_image(tmp_path):
    write_folder(tmp_path, ("train", "val", "test"), n=5)
    clean = folder(tmp_path).arrays("test")
    for part in FOLDERS:
        for name in JUNK:
            write_folder(tmp_path, (part,), classes=(name,), n=3)
            write_folder(tmp_path / part, ("cat",), classes=(name,), n=3)
        for name in ("._000.png", ".DS_Store", "Thumbs.db", "notes.txt"):
            (tmp_path / part / "dog" / name).write_bytes(b"no image")
            (tmp_path / part / name).write_bytes(b"no image")
    assert count_folders(str(tmp_path), "train", "test") == 2
    data = folder(tmp_path)
    for part in FOLDERS:
        assert torch.bincount(data.arrays(part).labels).tolist() == [5, 5]
    assert torch.equal(data.arrays("test").batch(torch.arange(10)), clean.batch(torch.arange(10)))
    hidden = write_folder(tmp_path / ".cache", n=4)  # only what is inside the folder counts
    assert len(folder(hidden, val_fraction=0.5).arrays("test").labels) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "train" / "empty").mkdir(), "other classes: empty"),
        (lambda root: [(root / part / "empty").mkdir() for part in FOLDERS], "has 3 class folders, but"),
        (
            lambda root: [file.unlink() for file in (root / "val" / "dog").iterdir()],
            "val has no images in its class dog",
        ),
        (lambda root: (root / "val" / "dog").rename(root / "dog"), "val has other classes: dog"),
        (lambda root: [(root / part / "dog").rename(root / part / ".dog") for part in FOLDERS], "has 1 class folders"),
        (lambda root: [(root / "test" / name).rename(root / name) for name in ("cat", "dog")], "test holds no folders"),
    ],
)
def test_classes_never_shift(spoil, message, tmp_path):
    write_folder(tmp_path, ("train", "val", "test"), n=3)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        folder(tmp_path).setup()


def test_judging_without_some_of_the_classes_is_refused(tmp_path):
    """Trained on cat, cow and dog, judged where there is no cow: dogs would be taken for cows."""
    write_folder(tmp_path, ("test",), classes=("cat", "dog"))
    with pytest.raises(UserError, match=r"2 class folders, but data.num_classes=3; labels follow the sorted folders"):
        folder(tmp_path, num_classes=3).setup()


@pytest.mark.slow
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


@pytest.mark.parametrize("workers", [0, 1])
def test_training_images_that_are_kept_are_decoded_once(tmp_path, workers):
    """The same images with the same digest, and a test set that is left to the evaluation."""
    write_folder(tmp_path, ("train", "val", "test"), n=6)
    kept, anew = (folder(tmp_path, keep_decoded=keep, num_workers=workers, batch_size=4) for keep in (True, False))
    for name in FOLDERS:
        assert content_digest(kept.arrays(name)) == content_digest(anew.arrays(name))
    decoded, source = Counter(), kept.arrays("train").read.source

    def counted(position):
        decoded[position] += 1
        return source(position)

    kept.arrays("train").read.source = counted
    for _ in range(2):
        for mine, other in zip(kept.train_dataloader(), anew.train_dataloader(), strict=True):
            assert torch.equal(mine[0], other[0])
            assert torch.equal(mine[1], other[1])
    assert decoded == ({} if workers else dict.fromkeys(range(12), 1))
    assert kept.arrays("test").read.paths

"""A digest changes with images and labels, and with nothing else."""

import pytest
import torch
from PIL import Image

from wdro_train.data import (
    ImageArrays,
    ImageFiles,
    ImageFolderDataModule,
    content_digest,
)


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

"""Networks of transformers."""

import pytest
import torch
from datafiles import write_vit

from wdro_train.models import (
    huggingface_model,
)
from wdro_train.utils.errors import UserError


def test_huggingface_from_a_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    folder = write_vit(tmp_path / "vit", channels=3, mean=mean, std=std)
    shape = {"shape": (3, 8, 8), "mean": [0.0] * 3, "std": [1.0] * 3, "num_classes": 5}
    random = huggingface_model(**shape, name=str(folder), pretrained=False).eval()
    random[1].network.save_pretrained(folder)
    model = huggingface_model(**shape, name=str(folder)).eval()
    x = torch.rand(2, 3, 8, 8)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    scaled = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.allclose(model(x), theirs(pixel_values=scaled).logits)
    assert torch.equal(model(x), random(x))
    with pytest.raises(UserError, match="is no image classifier that transformers can read"):
        huggingface_model(**shape, name=str(tmp_path / "nothing"))

"""Networks of torchvision, for images of any size and number of channels."""

import pytest
import torch
from datafiles import write_folder
from shell import run
from torch import nn

from wdro_train.attacks import WFGSM
from wdro_train.models import (
    torchvision_model,
)
from wdro_train.utils.errors import UserError


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision(name, channels):
    kwargs = {"num_classes": 7, "mean": [0.5] * channels, "std": [0.2] * channels}
    model = torchvision_model((channels, 32, 32), **kwargs, name=name, small_stem=True).eval()
    assert model(torch.rand(2, channels, 32, 32)).shape == (2, 7)
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    assert (first.kernel_size, first.stride, first.in_channels) == ((3, 3), (1, 1), channels)


@pytest.mark.slow
def test_torchvision_options_and_refusals():
    kwargs = {"num_classes": 4, "mean": [0.0] * 3, "std": [1.0] * 3}
    narrow, wide = (
        torchvision_model((3, 32, 32), **kwargs, name="mobilenet_v3_small", options={"width_mult": width})
        for width in (0.25, 1.0)
    )
    assert sum(p.numel() for p in narrow.parameters()) < sum(p.numel() for p in wide.parameters()) / 3
    with pytest.raises(UserError, match=r"model.name=resnet19 is not a classifier of torchvision"):
        torchvision_model((3, 32, 32), **kwargs, name="resnet19")
    with pytest.raises(UserError, match=r"model.small_stem=true is not for vit_b_16"):
        torchvision_model((3, 224, 224), **kwargs, name="vit_b_16", small_stem=True)
    with pytest.raises(UserError, match=r"resnet18 does not take model.options=.'wide': 3. .*unexpected"):
        torchvision_model((3, 32, 32), **kwargs, name="resnet18", options={"wide": 3})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("googlenet", 16), ("inception_v3", 75)])
def test_networks_with_auxiliary_classifiers(name, size):
    kwargs = {"num_classes": 3, "mean": [0.5], "std": [0.5], "name": name}
    network = torchvision_model((1, size, size), **kwargs).train()
    x, y = torch.rand(4, 1, size, size), torch.tensor([0, 1, 2, 0])
    assert network(x).shape == (4, 3)
    assert not any("aux" in part.lower() for part, _ in network.named_parameters())
    assert WFGSM(p=2, norm=2, delta=0.3)(network, x, y).x_adv.isfinite().all()


@pytest.mark.slow
def test_googlenet_from_the_command_line(tmp_path):
    """Documented networks: one is trained and judged, the other refuses such small images before anything is made."""
    common = ["model=torchvision", "trainer=cpu", "logger=none", "callbacks.images=null", "callbacks.progress=null"]
    quick = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "attack.steps=1"]
    quick += ["test=false", "data.batch_size=4", "data.eval_batch_size=4", "data.val_fraction=0.5"]
    folder = ["data=image_folder", f"data.root={write_folder(tmp_path / 'images')}", "data.shape=[3,16,16]"]
    arguments = [*common, *quick, "model.name=googlenet", "hydra.run.dir=run"]
    done = run("train.py", *arguments, *folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    judge = ["limit=4", "poster=null", "distances.steps=2", "accelerator=cpu", "hydra.run.dir=judged"]
    done = run("evaluate.py", "ckpt_path=run/checkpoints/last.ckpt", *judge, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("train.py", *common, *quick, "model.name=inception_v3", "hydra.run.dir=other", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: the network does not take images of shape (1, 8, 8)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "other").glob("**/*.ckpt"))

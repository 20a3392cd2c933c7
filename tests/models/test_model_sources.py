"""Networks from elsewhere: other packages' constructors, other programs' weights."""

import json
from importlib.util import find_spec

import pytest
import torch
from datafiles import write_folder, write_vit
from safetensors.torch import save_file
from shell import run
from torch import nn
from torchvision.models import resnet18 as plain_resnet18

from wdro_train.models import (
    huggingface_model,
    load_weights,
    preact_resnet18,
    robustbench_model,
    small_cnn,
    timm_model,
    torchvision_model,
    wide_resnet,
)
from wdro_train.utils.errors import UserError

COLOUR = {"shape": (3, 32, 32), "mean": [0.0] * 3, "std": [1.0] * 3}
SMALL = {"shape": (1, 8, 8), "num_classes": 10, "mean": [0.3], "std": [0.4]}


# Not `importorskip`: as it is published, the package cannot be imported without help.
needs_robustbench = pytest.mark.skipif(find_spec("robustbench") is None, reason="robustbench is not installed")


def cnn(seed):
    torch.manual_seed(seed)
    return small_cnn(**SMALL, width=4)


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module.model.", "model._orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model"])
def test_weights_are_found_behind_wrappers(prefix, wrapper, tmp_path):
    weights = {prefix + name: value for name, value in cnn(1).state_dict().items()}
    torch.save(weights if wrapper is None else {wrapper: weights, "epoch": 3}, tmp_path / "weights.pt")
    model = cnn(2)
    load_weights(model, tmp_path / "weights.pt")
    assert same(model, cnn(1))


def test_safetensors(tmp_path):
    save_file(cnn(1).state_dict(), tmp_path / "weights.safetensors")
    model = cnn(2)
    load_weights(model, tmp_path / "weights.safetensors")
    assert same(model, cnn(1))


@pytest.mark.slow
def test_real_wrappers(tmp_path):
    for wrap in (nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile):
        torch.save(wrap(cnn(1)).state_dict(), tmp_path / "weights.pt")
        model = cnn(2)
        load_weights(model, tmp_path / "weights.pt")
        assert same(model, cnn(1)), wrap


def test_a_bare_network_fits_behind_the_normalisation(tmp_path):
    """torchvision's own state dict, for a network that this project normalises first."""
    torch.manual_seed(0)
    inner = plain_resnet18(num_classes=10)
    torch.save({"state_dict": inner.state_dict()}, tmp_path / "weights.pth")
    model = torchvision_model(**COLOUR, num_classes=10, name="resnet18")
    load_weights(model, tmp_path / "weights.pth")
    assert same(model[1], inner)


def test_what_does_not_fit_is_named(tmp_path):
    weights = cnn(1).state_dict()
    weights["8.weight"] = torch.zeros(3, 100)
    weights["9.weight"] = weights.pop("1.bias")
    torch.save(weights, tmp_path / "weights.pt")
    model, before = cnn(2), cnn(2)
    message = "lacks 1.bias; it has the unexpected 9.weight; in it 8.weight has shape .3, 100., not .10, 100.; choose"
    with pytest.raises(UserError, match=message):
        load_weights(model, tmp_path / "weights.pt")
    assert same(model, before)


def test_unreadable_weights(tmp_path):
    with pytest.raises(UserError, match=r"no file model.weights="):
        load_weights(cnn(1), tmp_path / "none.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(UserError, match=r"whole.pt cannot be read .*; save it as"):
        load_weights(cnn(1), tmp_path / "whole.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678{")
    with pytest.raises(UserError, match=r"bad.safetensors cannot be read"):
        load_weights(cnn(1), tmp_path / "bad.safetensors")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds no named weights"):
        load_weights(cnn(1), tmp_path / "list.pt")


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision(name, channels):
    kwargs = {"num_classes": 7, "mean": [0.5] * channels, "std": [0.2] * channels}
    model = torchvision_model((channels, 32, 32), **kwargs, name=name, small_stem=True).eval()
    assert model(torch.rand(2, channels, 32, 32)).shape == (2, 7)
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    assert (first.kernel_size, first.stride, first.in_channels) == ((3, 3), (1, 1), channels)


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


def test_timm_normalises_as_its_configuration_says():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm_model((3, 32, 32), 7, "test_resnet").eval()
    config = timm.create_model("test_resnet").pretrained_cfg
    x = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert torch.equal(model(x), model[1]((x - mean) / std))
    assert timm_model((1, 32, 32), 7, "test_resnet").eval()(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    with pytest.raises(UserError, match=r"model.name=resnet19 is not a network of timm"):
        timm_model((3, 32, 32), 7, "resnet19")


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


@needs_robustbench
@pytest.mark.parametrize("net", ["wide", "preact", "preact_bn"])
def test_architectures_are_those_of_robustbench(net, tmp_path):
    """Same names, same shapes, and with the same weights the same logits."""
    with pytest.raises(UserError, match=r"no network model.name=Nobody2020 for cifar10"):
        robustbench_model(10, "Nobody2020")  # makes the package importable
    from robustbench.model_zoo.architectures.resnet import PreActBlock, PreActResNet
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    torch.manual_seed(0)
    if net == "wide":
        theirs = WideResNet(depth=16, widen_factor=2, sub_block1=True)
        ours = wide_resnet(**COLOUR, num_classes=10, depth=16, width=2)
    else:
        final = net == "preact_bn"
        theirs = PreActResNet(PreActBlock, [2, 2, 2, 2], bn_before_fc=final)
        ours = preact_resnet18(**COLOUR, num_classes=10, final_bn=final)
    for part in theirs.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -0.1, 0.1)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "theirs.pt")
    load_weights(ours, tmp_path / "theirs.pt")
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)


@needs_robustbench
def test_robustbench_reads_its_cache_layout(tmp_path):
    """Through the package's own loader, from `<root>/cifar10/Linf/<name>.pt`."""
    torch.manual_seed(0)
    random = robustbench_model(10, "Wong2020Fast", pretrained=False)
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    torch.save({f"module.{name}": value for name, value in random.state_dict().items()}, folder / "Wong2020Fast.pt")
    loaded = robustbench_model(10, "Wong2020Fast", root=str(tmp_path))
    assert same(loaded, random)
    (folder / "Wong2020Fast.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"Wong2020Fast could not be loaded from .*Wong2020Fast.pt"):
        robustbench_model(10, "Wong2020Fast", root=str(tmp_path))


@pytest.mark.parametrize(("make", "extra"), [(timm_model, "models"), (robustbench_model, "robustbench")])
def test_absent_package_names_its_extra(make, extra, monkeypatch):
    package = {"models": "timm", "robustbench": "robustbench"}[extra]
    for part in (package, f"{package}.utils"):
        monkeypatch.setitem(__import__("sys").modules, part, None)
    arguments = {"name": "resnet18", "num_classes": 10} | ({"shape": (3, 8, 8)} if package == "timm" else {})
    with pytest.raises(UserError, match=rf"{package}.* is not installed; run pip install 'wdro-train\[{extra}\]'"):
        make(**arguments)


QUICK = ["logger=none", "callbacks.images=null", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
QUICK += ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "trainer.accelerator=cpu"]
JUDGE = ["poster=null", "limit=16", "distances.steps=2", "pictures=0", "accelerator=cpu"]
SOURCES = {
    "torchvision": ["model=torchvision", "model.name=shufflenet_v2_x0_5", "model.small_stem=true"],
    "timm": ["model=timm", "model.name=resnet10t"],
    "wrn_28_10": ["model=wrn_28_10", "model.depth=10", "model.width=1"],
    "preact_resnet18": ["model=preact_resnet18", "model.width=4"],
    "huggingface": ["model=huggingface", "model.name=vit", "model.pretrained=false"],
    "robustbench": ["model=robustbench", "model.name=Wong2020Fast", "model.pretrained=false", "data=image_folder"],
}
SOURCES["robustbench"] += ["data.root=images", "data.shape=[3,32,32]", "data.batch_size=4", "data.val_fraction=0.3"]
PACKAGES = {"timm": "timm", "huggingface": "transformers", "robustbench": "robustbench"}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_each_source_trains_and_is_judged(source, tmp_path):
    if find_spec(PACKAGES.get(source, "torch")) is None:
        pytest.skip(f"{PACKAGES[source]} is not installed")
    write_vit(tmp_path / "vit")
    classes = [f"class {number}" for number in range(10)]
    write_folder(tmp_path / "images", parts=("train", "test"), classes=classes, n=4, size=(32, 32))
    trained = run("train.py", *SOURCES[source], *QUICK, "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    judged = run("evaluate.py", "ckpt_path=run/checkpoints/best.ckpt", *JUDGE, "hydra.run.dir=out", cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["models"][0]["images"] == 16


@pytest.mark.slow
def test_own_weights_train_on_and_are_not_needed_again(tmp_path):
    """A run started from a file leaves a checkpoint that stands alone; the file is judged without a run."""
    save_file(cnn(1).state_dict(), tmp_path / "start.safetensors")
    model = ["model=small_cnn", "model.width=4", "model.weights=start.safetensors"]
    trained = run("train.py", *model, *QUICK, "optimizer.lr=0", "hydra.run.dir=run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    checkpoint = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(checkpoint[f"model.{name}"], value) for name, value in cnn(1).state_dict().items())
    alone = run("evaluate.py", *model, "data=digits", *JUDGE, "hydra.run.dir=alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    (tmp_path / "start.safetensors").unlink()
    judged = run("evaluate.py", "ckpt_path=run/checkpoints/best.ckpt", *JUDGE, "hydra.run.dir=out", cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    one, other = (json.loads((tmp_path / f / "report.json").read_text()) for f in ("alone", "out"))
    assert one["threat"] == other["threat"] == {"p": 2.0, "norm": "inf", "delta": 0.1}
    assert one["models"][0]["distances"]["values"] == other["models"][0]["distances"]["values"]
    missing = run("evaluate.py", "model=small_cnn", "data=digits", *JUDGE, cwd=tmp_path)
    assert missing.returncode == 1
    assert "has no weights; give model.weights=" in missing.stderr

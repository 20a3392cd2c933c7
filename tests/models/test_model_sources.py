"""Networks of every source train and are judged from the command line; a package that is absent names its extra."""

import json
from importlib.util import find_spec

import pytest
from datafiles import write_folder, write_vit
from shell import run

from wdro_train.models import (
    robustbench_model,
    timm_model,
)
from wdro_train.utils.errors import UserError


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
QUICK += ["data.eval_batch_size=16", "attack.steps=2"]
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

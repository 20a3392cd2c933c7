"""The four journeys of docs/journeys.md, as the page tells them: its files, its commands, and what comes out."""

import json
import re
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from shell import ROOT, run, wandb_history
from test_docs import blocks, commands
from torch.nn.functional import cross_entropy

import wdro_train

PAGE = ROOT / "docs/journeys.md"
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """A folder with the files of the page, in which the commands find the project's own."""
    for kind, body in blocks(PAGE):
        if kind == "python" and (named := re.match(r"# (\S+/\S+)\n", body)):
            (tmp_path / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / named[1]).write_text(body)
    for name in ("train.py", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def typed(folder, *words):
    """Run the commands of the page that contain these words; returns what each printed."""
    chosen = [line for line in commands(PAGE) if any(word in " ".join(line) for word in words)]
    assert chosen
    said = []
    for program, *arguments in chosen:
        assert program == "python"
        done = run(*arguments, cwd=folder, env={"PYTHONPATH": f"{folder}:{ROOT}"})
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    return said


def pictures(root, classes, parts, n, seed, end):
    """Pictures of 32x32: each class has its colour, most of it noise."""
    rng = np.random.default_rng(seed)
    for part in parts:
        for k, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            colour = np.random.default_rng(k).uniform(60, 196, 3)
            for number in range(n):
                pixels = np.clip(rng.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number:03}.{end}")


def pixels(files):
    found = np.stack([np.asarray(Image.open(file), dtype=np.float32) / 255 for file in files])
    return torch.from_numpy(found).permute(0, 3, 1, 2)


def test_own_images_own_network_and_out_again(folder):
    """What onnxruntime says about the pictures, without PyTorch, is what the trained network says."""
    pytest.importorskip("onnxruntime")
    pictures(folder / "images", ("cat", "dog"), ("train", "test"), 40, 0, "png")
    typed(folder, "my_package.pets")
    (model,) = json.loads((folder / "runs/evaluate/pets/report.json").read_text())["models"]
    assert model["clean_accuracy"] > 0.8
    assert 0 < model["interval"]["certified"] <= model["interval"]["attacked"] <= model["clean_accuracy"]
    files = sorted((folder / "images/test").glob("*/*.png"))
    command = [sys.executable, "elsewhere/predict.py", "runs/pets/export/onnx", *map(str, files)]
    blocked = "import sys; sys.modules.update(torch=None, wdro_train=None); import runpy; sys.argv = sys.argv[1:]; "
    blocked += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command[1:1] = ["-c", blocked]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    elsewhere = json.loads(done.stdout)
    sys.path.insert(0, str(folder))
    try:
        network = wdro_train.load(folder / "runs/pets", allowed={"my_package.pets.pets"})
    finally:
        sys.path.remove(str(folder))
    here = [network.classes[k] for k in network(pixels(files)).argmax(1)]
    assert [elsewhere[str(file)] for file in files] == here
    right = [file.parent.name == name for file, name in zip(files, here, strict=True)]
    assert np.mean(right) == pytest.approx(model["clean_accuracy"])
    card = (folder / "runs/pets/export/onnx/README.md").read_text()
    assert "W_2" in card


def test_own_module_with_the_attack(folder):
    (said,) = typed(folder, "my_package.mine")
    clean, left = map(float, re.search(r"clean ([\d.]+), under W_2 0.1 at most ([\d.]+)", said).groups())
    assert clean > 0.8
    assert 0 < left < clean


def trained_elsewhere(folder):
    """A file in the format of the original: the weights of a DataParallel network, without counts of batches."""
    sys.path.insert(0, str(folder))
    try:
        from my_package.resnet20 import ResNet20
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
            del sys.modules[name]
    torch.manual_seed(0)
    network = ResNet20()
    files = sorted((folder / "cifar/train").glob("*/*.jpg"))
    mean, std = (torch.tensor(three).view(3, 1, 1) for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x, y = (pixels(files) - mean) / std, torch.arange(10).repeat_interleave(len(files) // 10)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        cross_entropy(network(x), y).backward()
        optimizer.step()
    network.eval()
    weights = {f"module.{key}": value for key, value in network.state_dict().items() if "num_batches" not in key}
    assert len(weights) == 97
    torch.save({"state_dict": OrderedDict(weights), "best_prec1": 91.78}, folder / "cifar_resnet20.th")
    tests = sorted((folder / "cifar/test").glob("*/*.jpg"))
    with torch.no_grad():
        found = network((pixels(tests) - mean) / std).argmax(1)
    return float((found == torch.arange(10).repeat_interleave(len(tests) // 10)).double().mean())


def test_a_checkpoint_of_other_people(folder):
    """The clean accuracy is that of the network with its own normalisation, and the order of the balls holds."""
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    pictures(folder / "cifar", names, ("train",), 12, 1, "jpg")
    pictures(folder / "cifar", names, ("test",), 4, 2, "jpg")
    clean = trained_elsewhere(folder)
    assert clean > 0.3
    typed(folder, "cifar_resnet20.th")
    (model,) = json.loads((folder / "runs/foreign/report.json").read_text())["models"]
    assert model["images"] == 40
    assert model["clean_accuracy"] == pytest.approx(clean)
    at = {float(curve["p"]): curve["accuracy"] for curve in model["curves"]}
    assert all(one <= two <= most for one, two, most in zip(at[1], at[2], at[float("inf")], strict=True))
    assert model["worst_case"]["accuracy"] < clean


def test_a_sweep_of_wandb_offline(folder):
    """Two runs of one group with different values, and a summary that has the metric of the sweep."""
    typed(folder, "my_package.offline_sweep")
    files = sorted(folder.glob("runs/**/offline-run-*/*.wandb"))
    assert len(files) == 2
    rates, groups = set(), set()
    for file in files:
        summary, config = {}, {}
        for record in map(json.loads, wandb_history(file).splitlines()):
            if record["type"] == "summary":
                summary |= record["summary"]["update"]
            if record["type"] == "config":
                config |= record["config"]["update"]
            if record["type"] == "run":
                groups.add(record["run"].get("run_group") or record["run"].get("runGroup"))
        assert 0 <= summary["val/worst_acc"] <= 1
        rates.add(json.dumps(config["optimizer"]))
    assert len(rates) == 2
    assert groups == {"offline_sweep"}

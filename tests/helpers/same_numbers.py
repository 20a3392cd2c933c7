"""Record what the commands compute, to the last bit, so that a change of shape can be shown to change no number.

    python tests/helpers/same_numbers.py TREE record.json             # runs everything in the checkout TREE
    python tests/helpers/same_numbers.py --compare old.json new.json  # names every number that differs

Recorded are, each on one thread and with seed 0: `python train.py`, `python evaluate.py` of its checkpoint and of the
reference network of tests/reference, and 20 steps of every training method. The figures are those of metrics.json and
report.json in full precision; weights enter as one digest of their bytes. Timings, versions and paths are left out.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

REFERENCE = Path(__file__).parents[1] / "reference"
NEEDS = {"lipschitz_dual": ("model=lipschitz_mlp", "attack.norm=2")}  # what a method cannot do without
SETUPS = {"cifar10_resnet18", "fashion_mnist"}  # experiments that choose data and network, not a method
NOT_NUMBERS_OF_THE_MODEL = {
    "seconds",
    "versions",
    "version",
    "created",
    "command",
    "revision",
    "schema_version",
    "wandb_offline",
}
NETWORK = """
from torch import nn

def reference_cnn(**unused):
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10),
    )
"""


def main() -> None:
    """Record, or compare two records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="compare two records instead of making one")
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    chosen = parser.parse_args()
    if chosen.compare:
        sys.exit(compare(json.loads(chosen.first.read_text()), json.loads(chosen.second.read_text())))
    with tempfile.TemporaryDirectory() as scratch:
        chosen.second.write_text(json.dumps(record(chosen.first.resolve(), Path(scratch)), indent=1) + "\n")


def record(tree: Path, scratch: Path) -> dict[str, Any]:
    """Every figure of every command, by its name."""
    methods = tree / "conf" / "method"
    group = methods if methods.is_dir() else tree / "conf" / "experiment"
    names = sorted(file.stem for file in group.glob("*.yaml") if file.stem not in SETUPS)
    quick = ("trainer.max_epochs=1", "trainer.limit_train_batches=20", "logger=csv", "callbacks.images=null")
    trainings = {name: (f"{group.name}={name}", *NEEDS.get(name, ()), *quick) for name in names} | {
        "default": ("logger=csv",)
    }
    with ThreadPoolExecutor(2) as pool:
        jobs = {name: pool.submit(trained, tree, scratch / name, *args) for name, args in trainings.items()}
        found = {f"train {name}": job.result() for name, job in jobs.items()}
        images(scratch / "data")
        (scratch / "reference_cnn.py").write_text(NETWORK)
        data = ("data=fashion_mnist", f"data.root={scratch}/data", f"data.gz_folder={scratch}/data", "model=small_cnn")
        network = ("model._target_=reference_cnn.reference_cnn", f"model.weights={REFERENCE}/cnn_adversarial.pt")
        evaluations = {
            "default": (f"ckpt_path={scratch}/default/checkpoints/best.ckpt",),
            "reference l_inf": (*data, *network, "attack.p=2", "attack.delta=0.1"),
            "reference l_2": (*data, *network, "attack.p=2", "attack.norm=2", "attack.delta=1.0"),
        }
        runs = {
            name: pool.submit(evaluated, tree, scratch / f"evaluate_{name.replace(' ', '_')}", scratch, *args)
            for name, args in evaluations.items()
        }
        found |= {f"evaluate {name}": run.result() for name, run in runs.items()}
    return found


def trained(tree: Path, folder: Path, *args: str) -> dict[str, Any]:
    """The figures and the weights of one training."""
    run(tree, folder, "train.py", *args, "seed=0", f"hydra.run.dir={folder}")
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    digest = hashlib.sha256()
    for key, value in sorted(checkpoint["state_dict"].items()):
        digest.update(key.encode() + value.cpu().numpy().tobytes())
    return numbers(json.loads((folder / "metrics.json").read_text())) | {"weights": digest.hexdigest()}


def evaluated(tree: Path, folder: Path, modules: Path, *args: str) -> dict[str, Any]:
    """The figures of one evaluation."""
    run(tree, folder, "evaluate.py", *args, "seed=0", f"store={folder}_pieces", f"hydra.run.dir={folder}", path=modules)
    return numbers(json.loads((folder / "report.json").read_text()))


def run(tree: Path, folder: Path, *command: str, path: Path | None = None) -> None:
    """One command in a process of its own, on one thread."""
    paths = [str(tree), *([str(path)] if path else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(paths), "WANDB_MODE": "offline"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(tree / command[0]), *command[1:]],
        env=environment,
        cwd=folder.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def images(folder: Path) -> None:
    """The 500 reference images as the four files of Fashion-MNIST."""
    folder.mkdir()
    data = np.load(REFERENCE / "fashion_mnist_test_000_499.npz")
    for part in ("train", "t10k"):
        pixels, labels = data["images"].astype(np.uint8), data["labels"].astype(np.uint8)
        header = struct.pack(">IIII", 2051, len(pixels), 28, 28)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        header = struct.pack(">II", 2049, len(labels))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """All numbers of a tree of dictionaries and lists, by their path."""
    if isinstance(value, dict):
        parts = [(key, child) for key, child in value.items() if key not in NOT_NUMBERS_OF_THE_MODEL]
    elif isinstance(value, list):
        parts = list(enumerate(value))
    else:
        return {name: repr(value)} if isinstance(value, int | float) else {}
    return {key: found for part, child in parts for key, found in numbers(child, f"{name}/{part}").items()}


def compare(old: dict[str, Any], new: dict[str, Any]) -> int:
    """Say what differs; 0 if nothing does."""
    different = 0
    for command in sorted(old.keys() | new.keys()):
        before, after = old.get(command, {}), new.get(command, {})
        wrong = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
        different += len(wrong)
        print(f"{command}: {len(before)} numbers, {len(wrong)} different")
        for key in wrong[:10]:
            print(f"  {key}: {before.get(key)} -> {after.get(key)}")
    return int(different > 0)


if __name__ == "__main__":
    main()

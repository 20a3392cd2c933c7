"""Whatever the program writes is there whole or not at all: killed processes, full and read-only disks, JSON."""

import io
import json
import math
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from shell import SMALL, run, start

from wdro_train.evaluation.report import build
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.training.checkpoint_io import ReplacingCheckpointIO
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import replacing, write_csv, write_json, write_text

QUICK = [*SMALL, "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "attack.steps=1"]


def strict(path):
    """JSON as the standard has it: no NaN, no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(Path(path).read_text(), parse_constant=refuse)


@pytest.mark.slow
def test_every_json_file_is_json(tmp_path):
    """At p = inf, and in a sweep, whose table reads it."""
    short = [*QUICK, "trainer.max_epochs=1", "attack.p=inf", "trainer.limit_test_batches=1"]
    done = run("train.py", "-m", *short, "hydra.sweep.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {path.name: strict(path) for path in tmp_path.rglob("*.json")}
    assert found["metrics.json"]["threat"]["p"] == "inf"
    assert float((tmp_path / "out/sweep.csv").read_text().splitlines()[1].split(",")[2]) >= 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (-math.inf, "-inf"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        ({"a": (1, [math.inf, {"b": math.nan}])}, {"a": [1, ["inf", {"b": None}]]}),
        ({2: "ü"}, {"2": "ü"}),
    ],
)
def test_values_in_json(value, expected, tmp_path):
    write_json(tmp_path / "file.json", value)
    assert strict(tmp_path / "file.json") == expected


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 kB that can be filled and made read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    try:
        subprocess.run(options, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a small disk is not allowed here: {getattr(error, 'stderr', error)}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, spare):
    """Leave so many bytes free."""
    free = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - spare))


def figure(path, size):
    picture = Figure()
    picture.subplots().imshow(np.random.default_rng(0).random((size // 1000, 50)), interpolation="none")
    with replacing(path) as file:
        picture.savefig(file, format="png")


WRITERS = {
    "last.ckpt": lambda path, size: ReplacingCheckpointIO().save_checkpoint({"a": torch.rand(size)}, path),
    "metrics.json": lambda path, size: write_json(path, {"a": [0.5] * size}, indent=2),
    "report.json": lambda path, size: build.write({"a": [0.5] * size}, path.parent),
    "error.txt": lambda path, size: write_text(path, "x" * size),
    "sweep.csv": lambda path, size: write_csv(path, [{"a": k} for k in range(size)]),
    "figure.png": figure,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("trouble", ["No space left on device", "Read-only file system"])
def test_disk_that_cannot_be_written(name, trouble, small_disk):
    """One sentence with path and reason; what was there before is as it was, and nothing is beside it."""
    path = small_disk / "folder" / name
    WRITERS[name](path, 2000)
    before = path.read_bytes()
    if trouble.startswith("No space"):
        fill(small_disk, 4096)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError) as caught:
        WRITERS[name](path, 100_000)
    assert str(caught.value).startswith(f"{path} cannot be written ({trouble});")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [name]


@pytest.mark.slow
def test_disk_is_full_in_the_middle_of_a_run(small_disk, tmp_path):
    """At a checkpoint and at a report: exit code 1, one sentence, the previous checkpoint still loads."""
    folder = small_disk / "run"
    first = run("train.py", *QUICK, "trainer.max_epochs=1", "test=false", f"hydra.run.dir={folder}", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    last = folder / "checkpoints/last.ckpt"
    fill(small_disk, 100_000)
    room = 100_000 - last.stat().st_size
    assert room > 0
    fill_more = small_disk / "more"
    fill_more.write_bytes(bytes(100_000 - 48 * 1024))  # enough for notes, too little for a checkpoint
    assert last.stat().st_size > 48 * 1024
    before = last.read_bytes()
    again = [*QUICK, "trainer.max_epochs=2", f"ckpt_path={last}", f"hydra.run.dir={folder}"]
    done = run("train.py", *again, cwd=tmp_path)
    assert done.returncode == 1
    assert f"error: {folder / 'checkpoints'}/" in done.stderr
    assert "cannot be written (No space left on device); what was there before is unchanged" in done.stderr
    assert "Traceback" not in done.stderr
    assert last.read_bytes() == before
    assert read_checkpoint(last)["epoch"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("door", ["train.py", "evaluate.py"])
def test_folder_that_cannot_be_written(door, small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = run(door, f"hydra.run.dir={small_disk}/run", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {small_disk}/run cannot be written (Read-only file system);")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def elsewhere(tmp_path):
    """A folder on another file system than the one for temporary files."""
    parent = Path("/dev/shm")
    if not os.access(parent, os.W_OK) or parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is not another file system that can be written")
    folder = Path(tempfile.mkdtemp(dir=parent))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_readers_never_see_a_part_of_a_checkpoint(elsewhere, tmp_path):
    last = elsewhere / "run/checkpoints/last.ckpt"
    command = [
        *QUICK,
        "model.width=64",
        "trainer.max_epochs=8",
        "test=false",
        "objective=standard",
        f"hydra.run.dir={elsewhere}/run",
    ]
    command += ["callbacks=no_adversary"]
    with start("train.py", *command, cwd=tmp_path, env={"TMPDIR": str(tmp_path)}) as process:
        while process.poll() is None:
            if last.exists():
                content = last.read_bytes()
                torch.load(io.BytesIO(content), weights_only=True)
        assert process.wait() == 0, process.stderr
    assert read_checkpoint(last)["epoch"] == 7


KILLED = [*QUICK, "trainer.max_epochs=8", "trainer.limit_test_batches=2"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    whole = run("train.py", *KILLED, "hydra.run.dir=run", cwd=folder)
    assert whole.returncode == 0, whole.stderr
    return strict(folder / "run/metrics.json")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_five_times(seed, uninterrupted, elsewhere, tmp_path):
    """kill -9 at random moments: what is there loads, and in the end the numbers are those of a run left in peace.

    One of the two has its folder on another file system than its temporary files.
    """
    folder = (tmp_path / "run", elsewhere / "run")[seed]
    last, resume, draw, epochs = folder / "checkpoints/last.ckpt", [], random.Random(seed), []
    for _ in range(5):
        env = {"TMPDIR": str(tmp_path)}
        with start("train.py", *KILLED, *resume, f"hydra.run.dir={folder}", cwd=tmp_path, env=env) as process:
            while not (folder / ".run/state.json").exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 1.5))
            process.kill()
            process.wait()
        for file in folder.glob("checkpoints/*.ckpt"):
            torch.load(file, weights_only=True)
        resume = [f"ckpt_path={last}"] if last.exists() else []
        epochs.append(read_checkpoint(last)["epoch"] if last.exists() else -1)
    assert epochs == sorted(epochs)
    done = run("train.py", *KILLED, *resume, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = strict(folder / "metrics.json")
    for key in ("val", "test", "epoch", "epochs"):
        assert found[key] == uninterrupted[key]
    assert not list(folder.rglob("*.tmp"))

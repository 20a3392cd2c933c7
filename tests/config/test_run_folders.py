"""Runs, evaluations and sweeps that start at the same moment, or are sent to a folder that is taken."""

import csv
import json
import re
import signal
import time
from contextlib import ExitStack

import pytest
import torch
from shell import PATIENCE, SMALL, run, start

from wdro_train.utils.files import write_json

pytestmark = pytest.mark.slow

QUICK = [
    *SMALL,
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "attack.steps=1",
]
CLEAN = [*QUICK, "objective=standard", "callbacks=no_adversary", "verbose=true"]
LONG = [*QUICK, "test=false", "trainer.max_epochs=1000000"]  # until it is killed
SAME_NAME = "hydra.run.dir=runs/${now:%Y}"
JUDGE = ["limit=20", "poster=null", "distances.steps=2", "pictures=0", "accelerator=cpu"]


def together(*commands, cwd):
    """Exit codes, output and errors of commands that start at once."""
    with ExitStack() as stack:
        processes = [stack.enter_context(start(*command, cwd=cwd)) for command in commands]
        codes = [process.wait() for process in processes]
        return codes, [process.stdout for process in processes], [process.stderr for process in processes]


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, in the folder `run`."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("train.py", *QUICK, "test=false", "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def files(folder):
    """Every file with its content, but for locks and what a process was asked."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ten_runs_at_once(tmp_path):
    """Ten networks that the choice of the name gives one folder: ten folders, and each run prints its own network."""
    seeds = [0, 1, 2, 3, 4] * 2
    commands = [["train.py", *CLEAN, f"seed={seed}", "trainer.limit_test_batches=1", SAME_NAME] for seed in seeds]
    codes, said, errors = together(*commands, cwd=tmp_path)
    assert codes == [0] * 10, errors
    year = time.strftime("%Y")
    names = {"latest", year, *(f"{year}-{k}" for k in range(1, 10))}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names
    found = []
    for seed, text in zip(seeds, said, strict=True):
        folder = tmp_path / re.search(r"run folder +(.*)", text).group(1)
        report = metrics(folder)
        assert report["seed"] == seed
        assert report["checkpoint"] == str(folder / "checkpoints/best.ckpt")
        value = report["test"]["loss"]
        assert f"{value:.4f}" in text
        found.append((report["val"], report["test"], folder))
    for k in range(5):
        assert found[k][:2] == found[k + 5][:2]
    assert len({test["loss"] for _, test, _ in found}) == 5
    assert len({folder for *_, folder in found}) == 10


def test_two_evaluations_at_once(trained):
    judge = ["evaluate.py", "ckpt_path=run/checkpoints/best.ckpt", *JUDGE, "hydra.run.dir=judged/${now:%Y}"]
    codes, said, errors = together([*judge, "attack.delta=0.1"], [*judge, "attack.delta=0.2"], cwd=trained)
    assert codes == [0, 0], errors
    for text, delta in zip(said, (0.1, 0.2), strict=True):
        report = json.loads((trained / re.search(r"report +(.*)", text).group(1)).read_text())
        assert report["threat"]["delta"] == delta
    assert len([folder for folder in (trained / "judged").iterdir() if not folder.is_symlink()]) == 2


@pytest.mark.parametrize("folder", ["hydra.sweep.dir=sweeps/${now:%Y}", "hydra.sweep.dir=sweeps/same"])
def test_two_sweeps_at_once(folder, tmp_path):
    """Two folders by default; in one that the user names, each sweep has a table of its own jobs."""
    common = ["train.py", "-m", *CLEAN, "test=false", "hydra.sweep.subdir=seed${seed}", folder]
    codes, said, errors = together([*common, "seed=0,1"], [*common, "seed=2,3"], cwd=tmp_path)
    assert codes == [0, 0], errors
    files = [tmp_path / re.search(r"more in (.*)", text).group(1) for text in said]
    tables = [table(file) for file in files]
    assert [[row["job"] for row in rows] for rows in tables] == [["seed0", "seed1"], ["seed2", "seed3"]]
    for rows, file in zip(tables, files, strict=True):
        folders = [file.parent / row["job"] for row in rows]
        assert [float(row["val/clean_acc"]) for row in rows] == [metrics(one)["val"]["clean_acc"] for one in folders]
    assert not list(tmp_path.rglob(".sweep-*"))


def test_job_of_a_running_sweep_is_left_alone(tmp_path):
    """The second sweep says so in its table, and touches nothing there."""
    common = ["train.py", "-m", "hydra.sweep.dir=out"]
    with start(*common, *LONG, "seed=0", cwd=tmp_path) as first:
        wait_for(tmp_path / "out/0/.run/state.json", first)
        wait_for(tmp_path / "out/0/.hydra/overrides.yaml", first)
        before = (tmp_path / "out/0/.hydra/overrides.yaml").read_text()
        second = run(*common, *QUICK, "seed=1", cwd=tmp_path)
        assert second.returncode == 1
        (row,) = table(tmp_path / "out/sweep.csv")
        assert row["overrides"].endswith("seed=1")
        assert "another run is writing to" in row["error"]
        assert "Traceback" not in second.stderr
        assert (tmp_path / "out/0/.hydra/overrides.yaml").read_text() == before
        assert not (tmp_path / "out/0/error.txt").exists()
        assert not (tmp_path / "out/0/metrics.json").exists()


def wait_for(path, process):
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(("door", "argument"), [("train.py", "run_dir=run"), ("evaluate.py", "hydra.run.dir=run")])
def test_finished_run_is_left_alone(door, argument, trained):
    before = files(trained / "run")
    more = QUICK if door == "train.py" else ["ckpt_path=run/checkpoints/best.ckpt", *JUDGE]
    done = run(door, *more, argument, cwd=trained)
    assert done.returncode == 1
    start_, _, way_out = done.stderr.partition(" holds another run; choose another folder")
    assert start_ == f"error: {trained / 'run'}"
    assert ("continue it with ckpt_path=" in way_out) == (door == "train.py")
    assert done.stderr.count("\n") == 1
    assert files(trained / "run") == before


def test_running_run_is_left_alone_and_a_killed_one_is_taken_over(tmp_path):
    """Also by two that want its place at once: one of them gets it."""
    with start("train.py", *LONG, "hydra.run.dir=run", cwd=tmp_path) as first:
        wait_for(tmp_path / "run/checkpoints/last.ckpt", first)
        second = run("train.py", *QUICK, "hydra.run.dir=run", cwd=tmp_path)
        assert second.returncode == 1
        assert f"error: another run is writing to {tmp_path / 'run'} (process {first.pid} on " in second.stderr
        third = run("train.py", *QUICK, "run_dir=run", "ckpt_path=run/checkpoints/last.ckpt", cwd=tmp_path)
        assert "another run is writing to" in third.stderr
        first.kill()
        assert first.wait() == -signal.SIGKILL
    again = ["train.py", *QUICK, "test=false", "hydra.run.dir=run"]
    codes, _, errors = together(*[[*again, f"seed={seed}"] for seed in (1, 2)], cwd=tmp_path)
    assert sorted(codes) == [0, 1], errors
    assert metrics(tmp_path / "run")["seed"] == 1 + codes.index(0)
    resumed = [*QUICK, "test=false", "hydra.run.dir=run", "trainer.max_epochs=2"]
    done = run("train.py", *resumed, f"seed={1 + codes.index(0)}", "ckpt_path=run/checkpoints/last.ckpt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")["epochs"] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--cfg all", 0),
        ("dry_run=true hydra.run.dir=a/b", 0),
        ("attack.p=0.5", 1),
        ("-m attack.stepz=1,2", 1),
        ("run_dir=", 1),
        ("hydra.run.dir=null", 1),
        ("-m run_dir=one", 1),
        ("-m hydra.sweep.dir=", 1),
    ],
)
def test_nothing_is_left_behind(arguments, code, tmp_path):
    """Neither by what only prints nor by what fails before it has written anything."""
    done = run("train.py", *arguments.split(), "logger=none", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert not list(tmp_path.iterdir())
    assert done.stderr.count("\n") == code


def test_best_checkpoint_of_another_run_is_not_reported(tmp_path):
    """Whoever puts a file in the place of this run's best network: its numbers are not this run's."""
    args = ["train.py", *QUICK, "hydra.run.dir=run", "+callbacks.gate._target_=shell.WaitForFile"]
    args += [f"+callbacks.gate.path={tmp_path / 'replaced'}"]
    other = run("train.py", *QUICK, "seed=1", "test=false", "hydra.run.dir=other", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    with start(*args, cwd=tmp_path) as process:
        best = tmp_path / "run/checkpoints/best.ckpt"
        wait_for(best, process)
        (tmp_path / "other/checkpoints/best.ckpt").replace(best)
        (tmp_path / "replaced").touch()
        assert process.wait() == 1
        assert f"error: {best} was replaced by another run" in process.stderr
    assert not (tmp_path / "run/metrics.json").exists()


def test_folder_of_an_older_version(tmp_path):
    """Results without a claim are a finished run's."""
    write_json(tmp_path / "run/metrics.json", {"val": {}})
    done = run("train.py", *QUICK, "hydra.run.dir=run", cwd=tmp_path)
    assert "holds another run" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.json"]


def test_two_devices_share_a_folder_that_was_chosen_for_them(tmp_path):
    """The second process knows the folder of the first, with its number."""
    (tmp_path / "runs" / time.strftime("%Y")).mkdir(parents=True)
    done = run("train.py", *QUICK, "trainer=ddp_sim", "test=false", SAME_NAME, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [time.strftime("%Y"), time.strftime("%Y-1"), "latest"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names
    torch.load(tmp_path / f"runs/{time.strftime('%Y')}-1/checkpoints/best.ckpt", weights_only=True)

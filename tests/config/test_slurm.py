"""What Slurm asks of a job: requeue on a signal, and the same command going on where it was; on one rank and on two."""

import csv
import json
import os
import signal
import time
from contextlib import ExitStack

import pytest
from shell import PATIENCE, start

from wdro_train.config import slurm
from wdro_train.training.checkpoint import read_checkpoint

QUICK = ["logger=csv", "model.width=4", "callbacks.images=null", "callbacks.progress=null", "test=false"]
QUICK += ["trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "attack.steps=1"]


def note_taker(folder):
    """A `scontrol` that writes down what it is asked."""
    (folder / "scontrol").write_text('#!/bin/sh\necho "$@" >> requeued.txt\n')
    (folder / "scontrol").chmod(0o755)


def step(cwd, rank, ranks, door, *arguments, restarts=0):
    """One task of `srun`, as Slurm would start it on a single node."""
    tools = cwd / "bin"
    tools.mkdir(exist_ok=True)
    note_taker(tools)
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}
    env |= {"SLURM_NTASKS": str(ranks), "SLURM_NTASKS_PER_NODE": str(ranks), "SLURM_NNODES": "1"}
    env |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
    env |= {"SLURM_JOB_NAME": "robust"} | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})
    return start(door, *arguments, cwd=cwd, env=env)


def ended(tasks):
    """Exit codes and error messages of tasks that end by themselves."""
    with ExitStack() as stack:
        codes = [stack.enter_context(task).wait() for task in tasks]
        return codes, [task.stderr for task in tasks]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_preempted_job_goes_on(ranks, tmp_path):
    job = ["train.py", *QUICK, f"trainer={'cpu' if ranks == 1 else 'ddp_sim'}"]
    tasks = [step(tmp_path, rank, ranks, *job, "trainer.max_epochs=1000") for rank in range(ranks)]
    folder = tmp_path / "runs/slurm/4711.0"
    last = folder / "checkpoints/last.ckpt"
    try:
        deadline = time.monotonic() + PATIENCE
        while not last.exists() and time.monotonic() < deadline:
            assert all(task.poll() is None for task in tasks)
            time.sleep(0.02)
        for task in tasks:
            task.send_signal(signal.SIGUSR1)
        signalled = read_checkpoint(last)["epoch"]
        while read_checkpoint(last)["epoch"] < signalled + 3 and time.monotonic() < deadline:
            assert all(task.poll() is None for task in tasks)  # until Slurm ends it, the job trains on
            time.sleep(0.02)
    finally:
        for task in tasks:
            task.kill()
            task.wait()
            task.close()
    assert (tmp_path / "requeued.txt").read_text() == "requeue 4711\n"
    assert not list(folder.glob("hpc_ckpt_*"))
    seen = read_checkpoint(last)["epoch"] + 1
    assert seen > signalled + 2

    before = (folder / "csv/metrics.csv").read_text()
    more = f"trainer.max_epochs={seen + 1}"
    tasks = [step(tmp_path, rank, ranks, *job, more, restarts=1) for rank in range(ranks)]
    codes, said = ended(tasks)
    assert codes == [0] * ranks, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "requeued.txt", "runs"]
    assert [path.name for path in (tmp_path / "runs/slurm").iterdir()] == ["4711.0"]
    assert read_checkpoint(last)["epoch"] == seen
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == seen + 1
    assert (folder / "csv/metrics.csv").read_text() == before
    with (folder / "csv/1/metrics.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {str(seen)}

    if ranks == 2:  # they judge the network too, and leave one folder
        judge = ["evaluate.py", "devices=2", "accelerator=cpu", "limit=20", "poster=null", "pictures=0"]
        tasks = [step(tmp_path, rank, ranks, *judge, "distances.steps=2") for rank in range(ranks)]
        codes, said = ended(tasks)
        assert codes == [0] * ranks, said
        assert [path.name for path in (tmp_path / "runs/evaluate").glob("*/*/report.json")] == ["report.json"]
        assert sorted(path.name for path in (tmp_path / "runs/evaluate/slurm").iterdir()) == ["4711.0"]


def test_requeue_of_an_array_job(tmp_path, monkeypatch):
    """By the task's own name: its number may be that of the whole array. Without `scontrol` the job trains on."""
    names = {"SLURM_JOB_ID": "4713", "SLURM_STEP_ID": "0", "SLURM_ARRAY_JOB_ID": "4713", "SLURM_ARRAY_TASK_ID": "2"}
    for key, value in names.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        slurm.requeue_on_signal()
        with pytest.warns(UserWarning, match=r"job 4713_2 is not requeued: .*scontrol"):
            os.kill(os.getpid(), signal.SIGUSR1)
        note_taker(tmp_path)
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (tmp_path / "requeued.txt").read_text() == "requeue 4713_2\n"


def test_only_a_restarted_job_goes_on(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert slurm.interrupted_checkpoint(tmp_path) is None
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert slurm.interrupted_checkpoint(tmp_path) == str(tmp_path / "checkpoints/last.ckpt")
    assert slurm.interrupted_checkpoint(tmp_path / "new") is None
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert slurm.interrupted_checkpoint(tmp_path) is None

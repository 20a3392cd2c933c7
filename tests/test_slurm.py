"""What Slurm asks of a job: requeue on a signal, and the same command going on where it was; on one rank and on two."""

import csv
import json
import os
import signal
import subprocess
import time

import pytest
from shell import command

from wdro_train.checkpoint import read_checkpoint

QUICK = ["logger=csv", "model.width=4", "callbacks.images=null", "callbacks.progress=null", "test=false"]
QUICK += ["trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "attack.steps=1"]


def step(cwd, rank, ranks, *arguments, restarts=0):
    """One task of `srun`, as Slurm would start it on a single node; a script that takes notes is its `scontrol`."""
    tools = cwd / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text('#!/bin/sh\necho "$@" >> requeued.txt\n')
    (tools / "scontrol").chmod(0o755)
    settings = command("train.py", *QUICK, f"trainer={'cpu' if ranks == 1 else 'ddp_sim'}", *arguments, cwd=cwd)
    settings["env"] |= {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0"}
    settings["env"] |= {"SLURM_NTASKS": str(ranks), "SLURM_NTASKS_PER_NODE": str(ranks), "SLURM_NNODES": "1"}
    settings["env"] |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
    settings["env"] |= {"SLURM_JOB_NAME": "robust"} | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})
    return subprocess.Popen(**settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_preempted_job_goes_on(ranks, tmp_path):
    tasks = [step(tmp_path, rank, ranks, "trainer.max_epochs=1000") for rank in range(ranks)]
    folder = tmp_path / "runs/slurm/4711.0"
    last = folder / "checkpoints/last.ckpt"
    try:
        deadline = time.monotonic() + 200
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
            task.communicate()
    assert (tmp_path / "requeued.txt").read_text() == "requeue 4711\n"
    assert not list(folder.glob("hpc_ckpt_*"))
    seen = read_checkpoint(last)["epoch"] + 1
    assert seen > signalled + 2

    before = (folder / "csv/metrics.csv").read_text()
    more = f"trainer.max_epochs={seen + 1}"
    tasks = [step(tmp_path, rank, ranks, more, restarts=1) for rank in range(ranks)]
    said = [task.communicate(timeout=200) for task in tasks]
    assert [task.returncode for task in tasks] == [0] * ranks, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "requeued.txt", "runs"]
    assert [path.name for path in (tmp_path / "runs/slurm").iterdir()] == ["4711.0"]
    assert read_checkpoint(last)["epoch"] == seen
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == seen + 1
    assert (folder / "csv/metrics.csv").read_text() == before
    with (folder / "csv/1/metrics.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {str(seen)}

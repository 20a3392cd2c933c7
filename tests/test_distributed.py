"""The files of docs/distributed.md: the local forms run, the commands of the others are accepted."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import torch
import yaml
from in_process import call
from shell import PATIENCE, ROOT
from test_docs import FENCE, first_job, hydra_at_rest

from wdro_train.config.checkpoint_files import LAST_CHECKPOINT

PAGE = ROOT / "docs/distributed.md"
QUICK = ["logger=csv", "model.width=4", "callbacks.images=null", "test=false", "data.batch_size=64"]
QUICK += ["trainer.limit_train_batches=4", "attack.steps=1"]


@pytest.fixture(scope="module")
def files():
    """The page's files by name."""
    named = {}
    for _, _, body in FENCE.findall(PAGE.read_text()):
        if found := re.match(r"(?:#!.*\n)?# (jobs/\S+)\n", body):
            named[found[1]] = body
    assert set(named) == {"jobs/seeds.sh", "jobs/ray_train.py", "jobs/sky.yaml"}
    return named


def accepted(line, variables, folder):
    """What `dry_run` or the check of an evaluation says to a command of a file, with the variables filled in."""
    for name, value in variables.items():
        line = line.replace(f"${name}", value)
    assert "$" not in line
    script, *arguments = shlex.split(line)
    kept = [word for word in map(first_job, arguments) if word is not None]
    return script, kept


def composed(script, arguments):
    from hydra import compose

    with hydra_at_rest():
        return compose(script.removesuffix(".py"), arguments, return_hydra_config=True)


def test_slurm_file(files, tmp_path):
    """Its syntax is bash's, its options are Slurm's, and both steps are commands that exist."""
    script = tmp_path / "seeds.sh"
    script.write_text(files["jobs/seeds.sh"])
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n")
    slurm = argparse.ArgumentParser(exit_on_error=False)
    for option in ("job-name", "array", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "output"):
        slurm.add_argument(f"--{option}", required=True)
    slurm.add_argument("--signal", required=True)
    slurm.add_argument("--requeue", action="store_true")
    asked = slurm.parse_args(re.findall(r"^#SBATCH (\S+)$", text, re.MULTILINE))
    assert asked.requeue
    assert asked.signal.startswith("USR1@")
    train, evaluate = re.findall(r"^srun python (.*)$", text, re.MULTILINE)
    variables = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_ID": "4711"}
    cfg = composed(*accepted(train, variables, tmp_path))
    assert cfg.seed == 2
    assert asked.ntasks_per_node == asked.gpus_per_node
    cfg = composed(*accepted(evaluate, variables, tmp_path))
    assert str(cfg.devices) == asked.ntasks_per_node
    assert cfg.ckpt_path == "runs/slurm/4711.0/checkpoints/best.ckpt"


def test_slurm_file_runs_its_steps_in_order(files, tmp_path):
    """With a `srun` that notes what it is asked; the second step is not begun when the first fails."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text('#!/bin/sh\necho "$@" >> steps.txt\nexit ${FAIL:-0}\n')
    (tmp_path / "bin/srun").chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1"}
    for fail, steps in (("0", ["train.py", "evaluate.py"]), ("1", ["train.py"])):
        (tmp_path / "steps.txt").unlink(missing_ok=True)
        command = ["bash", "-c", files["jobs/seeds.sh"]]
        subprocess.run(command, cwd=tmp_path, env=environment | {"FAIL": fail}, check=fail == "0")
        found = (tmp_path / "steps.txt").read_text().splitlines()
        assert [line.split()[1] for line in found] == steps
        assert "seed=1" in found[0]


def test_skypilot_file(files, tmp_path):
    """The keys are those of a SkyPilot task, its scripts are bash, and its commands exist."""
    task = yaml.safe_load(files["jobs/sky.yaml"])
    assert set(task) <= {"name", "resources", "workdir", "file_mounts", "setup", "run", "envs", "num_nodes", "secrets"}
    kind, count = task["resources"]["accelerators"].split(":")
    assert kind
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    train, evaluate = re.findall(r"^python (.*)$", task["run"], re.MULTILINE)
    (bucket,) = task["file_mounts"]
    last = re.search(r"^last=(.*)$", task["run"], re.MULTILINE)[1]
    cfg = composed(*accepted(train, {"resume": f"ckpt_path={last}"}, tmp_path))
    assert cfg.hydra.run.dir.startswith(f"{bucket}/")
    assert cfg.ckpt_path == f"{cfg.hydra.run.dir}/{LAST_CHECKPOINT}"
    cfg = composed(*accepted(evaluate, {}, tmp_path))
    assert str(cfg.devices) == count


def consoles():
    text = "".join(body for _, kind, body in FENCE.findall(PAGE.read_text()) if kind == "console")
    return [line[2:] for line in text.replace("\\\n", " ").splitlines()]


def test_commands_of_torchrun_and_ray_compose():
    seen = 0
    for line in consoles():
        if found := re.search(r"(?:^torchrun .*?|^python )(train\.py.*)$", line):
            script, *arguments = shlex.split(found[1])
            seen += 1
            ours = [word for word in arguments if "launcher" not in word]
            composed(script, [kept for word in ours if (kept := first_job(word)) is not None])
    assert seen == 3


@pytest.mark.slow
def test_torchrun_with_two_processes(tmp_path):
    """The line of the page, shortened: two processes of gloo are one run, with the numbers of a single process."""
    (line,) = [line for line in consoles() if "--standalone" in line]
    program, *arguments = shlex.split(line)
    arguments[arguments.index("train.py")] = str(ROOT / "train.py")
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, *QUICK, "hydra.run.dir=two"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    assert program == "torchrun"
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    one = call("train", "trainer=cpu", "trainer.max_epochs=1", *QUICK, "hydra.run.dir=one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    found = [json.loads((tmp_path / name / "metrics.json").read_text())["val"] for name in ("one", "two")]
    assert found[1]["upsilon"] == pytest.approx(found[0]["upsilon"], rel=1e-3)
    assert found[1]["clean_acc"] == pytest.approx(found[0]["clean_acc"], abs=0.01)


@pytest.mark.slow
def test_ray_train(files, tmp_path):
    pytest.importorskip("ray.train.lightning")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/ray_train.py").write_text(files["jobs/ray_train.py"].replace('"epochs": 5', '"epochs": 1'))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "jobs/ray_train.py", str(tmp_path / "robust.ckpt"), "2", "cpu"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "robust.ckpt", weights_only=True)["global_step"] > 0

"""Jobs of a sweep on several devices, and ranks that others have started: one run folder each, no strays."""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from wdro_train.errors import UserError
from wdro_train.files import write_json

_RETURN = "WDRO_TRAIN_RETURN"  # where a run that a sweep started leaves what its task returned
_FAILURE = "error: "
_ADVICE = "Set the environment variable HYDRA_FULL_ERROR"


class JobError(RuntimeError):
    """A job's own process failed; what it said about it is the message, and has been printed."""


def needs_processes(cfg: DictConfig) -> bool:
    """Whether a job runs on several devices: its processes and their rendezvous must not outlive it.

    Args:
        cfg: Of `train.py` (with a trainer) or of `evaluate.py`.
    """
    where = cfg.get("trainer", cfg)
    return where.get("devices", 1) not in (1, "1") or where.get("num_nodes", 1) != 1


def in_fresh_process() -> float | None:
    """The current job of a sweep as a single run in a process of its own, in the job's folder.

    A rank that Lightning starts repeats the command line of its parent. In a sweep that would be the whole sweep.

    Returns:
        What the task returned.

    Raises:
        UserError: The run ended in a sentence for the user.
        JobError: It ended otherwise.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    command = [sys.executable, "-m", f"wdro_train.commands.{hydra.job.config_name}", *hydra.overrides.task]
    command += [f"hydra.run.dir='{folder}'", "hydra.output_subdir=null"]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            command += ["--config-dir", source.path]
    returned = folder / ".returned.json"
    environment = os.environ | _own_rendezvous(hydra.job.num) | {_RETURN: str(returned)}
    said: list[str] = []
    reasons: list[str] = []
    with subprocess.Popen(
        command, cwd=hydra.runtime.cwd, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for line in process.stderr or ():
                if not line.startswith((_FAILURE, _ADVICE)):
                    print(line, end="", file=sys.stderr, flush=True)
                    said.append(line)
                elif line.startswith(_FAILURE):
                    reasons.append(line.removeprefix(_FAILURE).strip())
        except BaseException:
            process.terminate()
            raise
    if process.returncode and reasons:
        raise UserError(reasons[0])
    if process.returncode:
        raise JobError("".join(said).strip() + f"\nthe job ended with exit code {process.returncode}")
    if not returned.is_file():
        return None
    result = json.loads(returned.read_text())
    returned.unlink(missing_ok=True)
    return math.nan if result is None else float(result)


def leave_result(result: float | None, where: str | None) -> None:
    """Tell the sweep that started this process what came out.

    Args:
        result: Of the task.
        where: From `return_address`.
    """
    if where is not None:
        write_json(where, math.nan if result is None else float(result))


def return_address() -> str | None:
    """Where the sweep that started this process waits for the result; the ranks of this run are not asked."""
    return os.environ.pop(_RETURN, None)


def _own_rendezvous(job: int) -> dict[str, str]:
    """Under torchrun every job meets at a port of its own: keys of the job before are still in torchrun's store."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    port = int(os.environ["MASTER_PORT"]) + 1 + job
    return {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def started_rank() -> int:
    """The rank that torchrun or Slurm gave to this process; 0 if neither started it."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["RANK"])
    if in_slurm_step() and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return int(environment.get("SLURM_PROCID", 0))
    return 0


def in_slurm_step() -> bool:
    """Whether `srun` in a batch job started this process."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return {"SLURM_JOB_ID", "SLURM_STEP_ID"} <= os.environ.keys() and not interactive


def quiet_rank(arguments: list[str]) -> list[str]:
    """Arguments with which ranks other than the first leave no folder behind.

    Args:
        arguments: As typed, without the program's name.
    """
    if started_rank() == 0 or _RETURN in os.environ:
        return arguments
    scratch = tempfile.mkdtemp(prefix="wdro_train_rank_")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    quiet = [f"hydra.sweep.dir={scratch}", "hydra.output_subdir=null"]
    if not in_slurm_step():  # there all ranks know the run's folder, and look in it for the checkpoint to go on from
        quiet.append(f"hydra.run.dir={scratch}")
    return [*arguments, *quiet]


def run_folder(now: str) -> str:
    """Where a run writes under its door's folder: a job that Slurm starts again finds what it left.

    Args:
        now: Day and time.
    """
    if not in_slurm_step():
        return now
    return f"slurm/{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"


def interrupted_checkpoint(folder: str | Path) -> str | None:
    """The last epoch's checkpoint of a job that Slurm has started again; None for a job's first start.

    Args:
        folder: Of the run.
    """
    last = Path(folder) / "checkpoints" / "last.ckpt"
    return str(last) if is_slurm_restart() and last.is_file() else None


def is_slurm_restart() -> bool:
    """Whether Slurm has put this job back into the queue and started it again."""
    return in_slurm_step() and int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def requeue_on_signal() -> None:
    """From now on SIGUSR1 (`sbatch --signal=USR1@60`) puts this Slurm job back into the queue.

    The checkpoint of the last epoch is all that it needs. Lightning would write one from within the signal, in the
    middle of a step, and prefer it to later ones when the job starts again.
    """
    if in_slurm_step():
        signal.signal(signal.SIGUSR1, _requeue)  # Lightning leaves a signal alone that is taken


def _requeue(*_: Any) -> None:
    if started_rank() != 0:
        return
    environment = os.environ
    job = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        warnings.warn(f"job {job} is not requeued: {error}", stacklevel=2)

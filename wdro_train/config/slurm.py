"""What Slurm and torchrun say about this process: its rank, its folder, and whether it is started again."""

from __future__ import annotations

import os
import signal
import subprocess
import warnings
from pathlib import Path
from typing import Any

from wdro_train.config.checkpoint_files import LAST_CHECKPOINT


def started_rank() -> int:
    """The rank that torchrun or Slurm gave to this process; 0 if neither started it."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["RANK"])
    if in_slurm_step() and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return int(environment.get("SLURM_PROCID", 0))
    return 0


def started_ranks() -> int:
    """How many processes torchrun or Slurm started together with this one, which is counted, too."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        return int(environment["WORLD_SIZE"])
    return int(environment.get("SLURM_NTASKS", 1)) if in_slurm_step() else 1


def in_slurm_step() -> bool:
    """Whether `srun` in a batch job started this process."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return {"SLURM_JOB_ID", "SLURM_STEP_ID"} <= os.environ.keys() and not interactive


def run_folder(now: str) -> str:
    """The name of a run's folder: under Slurm the job's and its step's number, so that a restarted job finds its files.

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
    last = Path(folder) / LAST_CHECKPOINT
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

"""Gives a job of a sweep that needs several devices processes of its own, and keeps ranks from leaving folders behind.

Lightning starts the ranks of a run by repeating the command line. In a sweep that line means the whole sweep, so such a
job runs as a command of its own in the folder that the sweep has for it. Ranks that torchrun or Slurm start all run
Hydra, and each would make a folder; all but the first get a temporary one.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from wdro_train.config import slurm
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import write_json

_RETURN = "WDRO_TRAIN_RETURN"  # where a run that a sweep started leaves what its task returned
_FAILURE = "error: "  # how the sentence begins that ends a command
_ADVICE = "Set the environment variable HYDRA_FULL_ERROR"  # Hydra's own, which does not apply to a job


class JobError(RuntimeError):
    """A job's own process failed; what it said about it is the message, and has been printed."""


def needs_processes(cfg: DictConfig) -> bool:
    """Whether a job runs on several devices: its processes and their rendezvous must not outlive it.

    Args:
        cfg: Of `train.py` (with a trainer) or of `evaluate.py`.
    """
    where = cfg.get("trainer", cfg)
    return where.get("devices", 1) not in (1, "1") or where.get("num_nodes", 1) != 1


def in_fresh_process(cfg: DictConfig) -> float | None:
    """The current job of a sweep as a single run in a process of its own, in the job's folder.

    A rank that Lightning starts repeats the command line of its parent. In a sweep that would be the whole sweep.

    Args:
        cfg: Of the job, whose `ckpt_path` says where it goes on: the process does not look for itself, because the
            folder says by now that the present run was begun there.

    Returns:
        What the task returned.

    Raises:
        UserError: The run ended in a sentence for the user.
        JobError: It ended otherwise.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    command = [sys.executable, "-m", f"wdro_train.cli.{hydra.job.config_name}", *hydra.overrides.task]
    command += [f"hydra.run.dir='{folder}'", "hydra.output_subdir=null"]
    if "trainer" in cfg:
        command += ["resume=false"] + ([] if cfg.ckpt_path is None else [f"ckpt_path='{cfg.ckpt_path}'"])
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
    """The file in which the sweep that started this process expects the result, or None.

    Processes that this one starts do not inherit it.
    """
    return os.environ.pop(_RETURN, None)


def _own_rendezvous(job: int) -> dict[str, str]:
    """Under torchrun every job meets at a port of its own: keys of the job before are still in torchrun's store."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return {}
    port = int(os.environ["MASTER_PORT"]) + 1 + job
    return {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def quiet_rank(arguments: list[str]) -> list[str]:
    """Arguments with which ranks other than the first leave no folder behind.

    Args:
        arguments: As typed, without the program's name.
    """
    if slurm.started_rank() == 0 or _RETURN in os.environ:
        return arguments
    scratch = tempfile.mkdtemp(prefix="wdro_train_rank_")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    quiet = [f"hydra.sweep.dir={scratch}", "hydra.output_subdir=null"]
    # In a step of Slurm all ranks know the run's folder, and look in it for the checkpoint to go on from.
    if not slurm.in_slurm_step():
        quiet.append(f"hydra.run.dir={scratch}")
    return [*arguments, *quiet]

"""Every run has a folder to itself: it claims it before anything is written there, and notes when it has finished.

How a folder gets its name is in `new_folders`. One that the user names may hold an earlier run. It is taken over if
that run was killed or failed, and if this run goes on from a checkpoint in it; a run that is still going, or has
finished, is left alone. Jobs of a sweep replace finished jobs, because a sweep that is started again is meant to.

A claim is a POSIX lock on `.run/lock`, which the operating system drops when the process is gone however it went,
and `.run/state.json`, which says who has the folder and whether the run has finished.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from wdro_train.config import latest, slurm
from wdro_train.config.checkpoint_files import LAST_CHECKPOINT
from wdro_train.config.file_lock import lock_file
from wdro_train.config.typed_command import typed_command
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import cannot_write, write_json, write_text

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.json"
ERROR_FILE = "error.txt"

_RUN = "WDRO_TRAIN_RUN"  # tells the processes that a run starts which run they belong to
_CLAIM, _CONFIGURATION = ".run", ".hydra"
_FINISHED = "finished"
_SLURM_PATIENCE = 120.0  # a file server may keep the lock of a node that died for a minute and a half

_held: dict[Path, tuple[str, int]] = {}


@contextmanager
def claimed(cfg: DictConfig) -> Iterator[None]:
    """Claim the run's folder, and note at the end of the block that the run has finished.

    The folder stays claimed until `release`, or until the process ends. Other ranks of a run, and the processes it
    starts, are part of it and claim nothing. Neither does `dry_run=true`, which writes nothing.

    Args:
        cfg: The configuration of the run, without the node `hydra`.

    Raises:
        UserError: Another run is going on there or has finished; or the folder has no name, or cannot be written.
    """
    folder = Path(named(cfg.run_dir, "run_dir")).absolute()
    if cfg.get("dry_run", False) or _is_part_of_a_run(folder):
        yield
    elif slurm.started_rank() > 0:
        _refuse_finished(folder, cfg)
        yield
    else:
        run = _take(folder, cfg)
        yield
        _note(folder, run, _FINISHED)


def release(folder: Path) -> None:
    """Give up a claim of this process, so that other runs may have the folder; harmless without one.

    Args:
        folder: Of the run.
    """
    run, handle = _held.pop(folder.absolute(), ("", -1))
    if handle >= 0:
        os.close(handle)
    if os.environ.get(_RUN) == run:
        del os.environ[_RUN]


def holds(folder: Path) -> bool:
    """Whether this process has claimed the folder.

    Args:
        folder: Of the run.
    """
    return folder.absolute() in _held


def has_finished(folder: Path) -> bool:
    """Whether a run of this version of the package has finished in a folder, and left its results.

    Args:
        folder: Of the run.
    """
    state = _state(folder) or {}
    done = state.get("state") == _FINISHED and state.get("version") == _version()
    return done and (folder / METRICS_FILE).is_file()


def stored_configuration(folder: Path) -> dict[str, Any] | None:
    """The configuration of the last run in a folder, nothing in it resolved; None if there is none that can be read.

    Args:
        folder: Of the run.
    """
    try:
        text = (folder / _CONFIGURATION / "config.yaml").read_text(encoding="utf-8")
        found = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception:  # whatever is wrong with it, it says nothing
        return None
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else None


def lock_if_unused(folder: Path) -> bool:
    """Lock a folder for this process if no run has left anything in it and no other process is at work there.

    Args:
        folder: One that exists.

    Returns:
        Whether it is unused, and locked.
    """
    return all(map(_is_trace, folder.iterdir())) and (holds(folder) or _lock(folder))


def named(value: Any, key: str) -> str:
    """The name of a folder.

    Args:
        value: What stands for it in the configuration.
        key: Where it stands.

    Raises:
        UserError: It is null or empty.
    """
    if value is None or not str(value).strip():
        raise UserError(f"{key}={'null' if value is None else value} names no folder; give {key}=runs/some_name")
    return str(value)


def _take(folder: Path, cfg: DictConfig) -> str:
    """Claim a folder, clear away results that will be replaced, and write the configuration."""
    _refuse_finished(folder, cfg)
    if folder in _held or not _lock(folder, _SLURM_PATIENCE if slurm.is_slurm_restart() else 0.0):
        state = _state(folder)
        who = f" (process {state['process']} on {state['host']}, started {state['started']})" if state else ""
        raise UserError(f"another run is writing to {folder}{who}; choose another folder with hydra.run.dir=...")
    try:
        _refuse_finished(folder, cfg)  # it may have finished a moment ago
    except UserError:
        release(folder)
        raise
    if not _continues(folder, cfg):
        for name in (METRICS_FILE, REPORT_FILE, ERROR_FILE):
            (folder / name).unlink(missing_ok=True)
    latest.begun(folder)
    run = uuid.uuid4().hex
    _held[folder] = (run, _held[folder][1])
    os.environ[_RUN] = run
    _note(folder, run, "running")
    hydra = HydraConfig.get()
    for name, content in (("config", cfg), ("hydra", {"hydra": hydra}), ("overrides", hydra.overrides.task)):
        write_text(folder / _CONFIGURATION / f"{name}.yaml", OmegaConf.to_yaml(content))
    return run


def _lock(folder: Path, patience: float = 0.0) -> bool:
    """Lock a folder for this process; False if another process has it.

    Args:
        folder: The folder.
        patience: Seconds to wait for the other process.

    Raises:
        UserError: Nothing can be written there.
    """
    try:
        handle = lock_file(folder / _CLAIM / "lock", patience)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if handle is None:
        return False
    _held[folder] = ("", handle)
    return True


def _is_trace(path: Path) -> bool:
    """Whether a file of a run's folder says nothing about what came out."""
    return path.name in (_CLAIM, _CONFIGURATION, "multirun.yaml") or path.suffix == ".log"


def _refuse_finished(folder: Path, cfg: DictConfig) -> None:
    """Leave a run alone that has finished, unless this one goes on with it or is a job of a sweep that replaces it."""
    state = _state(folder)
    finished = (
        state["state"] == _FINISHED if state else any((folder / f).is_file() for f in (METRICS_FILE, REPORT_FILE))
    )
    if not finished or _continues(folder, cfg) or HydraConfig.get().mode == RunMode.MULTIRUN:
        return
    last = folder / LAST_CHECKPOINT
    way_out = f", or continue it with ckpt_path={last}" if "trainer" in cfg and last.is_file() else ""
    raise UserError(f"{folder} holds another run; choose another folder with hydra.run.dir=...{way_out}")


def _continues(folder: Path, cfg: DictConfig) -> bool:
    """Whether a run goes on with the one whose folder it is."""
    if slurm.is_slurm_restart():
        return True
    checkpoint = cfg.get("ckpt_path")
    inside = isinstance(checkpoint, str) and Path(checkpoint).resolve().is_relative_to(folder.resolve())
    return "trainer" in cfg and inside


def _note(folder: Path, run: str, state: str) -> None:
    note = {"run": run, "state": state, "process": os.getpid(), "host": socket.gethostname()}
    note |= {"version": _version()}
    note |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "command": typed_command()}
    write_json(folder / _CLAIM / "state.json", note)


def _state(folder: Path) -> dict[str, Any] | None:
    """What the last run in a folder noted; None if there was none."""
    try:
        note = json.loads((folder / _CLAIM / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and note.keys() >= {"run", "state", "process", "host", "started"} else None


def _version() -> str:
    """Of this package, which has been imported because this module is one of it."""
    return str(sys.modules["wdro_train"].__version__)


def _is_part_of_a_run(folder: Path) -> bool:
    """Whether the run that has this folder started this process."""
    state = _state(folder)
    return folder not in _held and state is not None and state["run"] == os.environ.get(_RUN)

"""Every run has a folder to itself: it claims it before anything is written there, and notes when it has finished.

A folder that is named by the time (the default) is made by the run itself; if two runs start in the same second, the
second one's name ends in `-1`. A folder that the user names may hold an earlier run. It is taken over if that run was
killed or failed, and if this run goes on from a checkpoint in it; a run that is still going, or has finished, is left
alone. Jobs of a sweep replace finished jobs, because a sweep that is started again is meant to.

A claim is a POSIX lock on `.run/lock`, which the operating system drops when the process is gone however it went,
and `.run/state.json`, which says who has the folder and whether the run has finished.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import shutil
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from wdro_train.config import slurm
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import cannot_write, write_json, write_text

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.json"
ERROR_FILE = "error.txt"

_RUN = "WDRO_TRAIN_RUN"  # tells the processes that a run starts which run they belong to
_CLAIM, _CONFIGURATION = ".run", ".hydra"
_FINISHED = "finished"
_RETRIES = 10
_SLURM_PATIENCE = 120.0  # a file server may keep the lock of a node that died for a minute and a half

_held: dict[Path, tuple[str, int]] = {}
_made: list[list[Path]] = []


def prepare_run(config: DictConfig) -> None:
    """Choose the folder of a single run before Hydra makes it.

    Args:
        config: With the node `hydra`, whose `run.dir` is changed if another run has that folder.

    Raises:
        UserError: The folder has no name, or cannot be made.
    """
    if slurm.started_rank() > 0:
        return
    wanted = _named(config)
    folder = Path(_checked(config.hydra.run.dir, "hydra.run.dir") if wanted is None else wanted)
    if wanted is None and _is_dated(config.hydra.run):
        folder = new_folder(folder)
    else:
        _make(folder)
    _set(config, "run", folder)


def prepare_sweep(config: DictConfig) -> None:
    """The same for the folder of a sweep. One that the user names may be shared; its jobs claim folders of their own.

    Args:
        config: With the node `hydra`, whose `sweep.dir` is changed if another sweep has that folder.

    Raises:
        UserError: The folder has no name or cannot be made, or all jobs would have the same.
    """
    if slurm.started_rank() > 0:
        return
    if (one := _named(config)) is not None:
        raise UserError(f"run_dir={one} would be one folder for all jobs of the sweep; use hydra.sweep.dir={one}")
    wanted = Path(_checked(config.hydra.sweep.dir, "hydra.sweep.dir"))
    if not _is_dated(config.hydra.sweep):
        _make(wanted)
        return
    folder = new_folder(wanted)
    if folder != wanted:
        _set(config, "sweep", folder)
        with read_write(config.hydra.overrides), open_dict(config.hydra.overrides):
            # The configuration of every job is composed afresh from these.
            quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")


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
    folder = Path(_checked(cfg.run_dir, "run_dir")).absolute()
    if cfg.get("dry_run", False) or _is_part_of_a_run(folder):
        yield
    elif slurm.started_rank() > 0:
        _refuse_finished(folder, cfg)
        yield
    else:
        run = _take(folder, cfg)
        yield
        _note(folder, run, _FINISHED)


def new_folder(wanted: Path) -> Path:
    """Make a folder that nobody has: the one that is wanted, or else the first free one with a number at its end.

    Args:
        wanted: The name without a number.

    Raises:
        UserError: It cannot be made.
    """
    for number in itertools.count():
        folder = wanted.with_name(f"{wanted.name}-{number}") if number else wanted
        if _make(folder):
            return folder
    raise AssertionError


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


def remove_unused() -> None:
    """Remove the folders that this process made and in which no run has left anything; their empty parents too."""
    for made in _made:
        folder, parents = made[0], made[1:]
        with suppress(OSError):
            if not all(map(_is_trace, folder.iterdir())) or not (holds(folder) or _lock(folder, 0.0)):
                continue
            shutil.rmtree(folder)
            for path in parents:
                path.rmdir()
    _made.clear()


def _is_trace(path: Path) -> bool:
    """Whether a file of a run's folder says nothing about what came out."""
    return path.name in (_CLAIM, _CONFIGURATION, "multirun.yaml") or path.suffix == ".log"


def _checked(value: Any, key: str) -> str:
    if value is None or not str(value).strip():
        raise UserError(f"{key}={'null' if value is None else value} names no folder; give {key}=runs/some_name")
    return str(value)


def _named(config: DictConfig) -> str | None:
    """`run_dir`, if it is not the folder that Hydra chooses."""
    if "run_dir" not in config or OmegaConf.is_interpolation(config, "run_dir"):
        return None
    return _checked(config.run_dir, "run_dir")


def _is_dated(node: DictConfig) -> bool:
    """Whether the time is in the name of a folder, so that nobody can mean an earlier run's by it."""
    name = str(OmegaConf.to_container(node, resolve=False)["dir"])  # type: ignore[index, call-overload]
    return "${now:" in name and not ("${run_folder:" in name and slurm.in_slurm_step())


def _set(config: DictConfig, mode: str, folder: Path) -> None:
    if config.hydra[mode].dir != str(folder):
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra[mode].dir = str(folder)


def _make(folder: Path) -> bool:
    """Make a folder and remember it; False if it is there already."""
    try:
        for _ in range(_RETRIES):
            missing = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
            with suppress(FileNotFoundError):  # another process has just removed a parent that it did not use
                for parent in reversed(missing[1:]):
                    parent.mkdir(exist_ok=True)
                try:
                    folder.mkdir()
                except FileExistsError:
                    return False
                _made.append([path.absolute() for path in missing])
                return True
    except OSError as error:
        raise cannot_write(folder, error) from error
    return False


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
    run = uuid.uuid4().hex
    _held[folder] = (run, _held[folder][1])
    os.environ[_RUN] = run
    _note(folder, run, "running")
    hydra = HydraConfig.get()
    for name, content in (("config", cfg), ("hydra", {"hydra": hydra}), ("overrides", hydra.overrides.task)):
        write_text(folder / _CONFIGURATION / f"{name}.yaml", OmegaConf.to_yaml(content))
    return run


def _refuse_finished(folder: Path, cfg: DictConfig) -> None:
    """Leave a run alone that has finished, unless this one goes on with it or is a job of a sweep that replaces it."""
    state = _state(folder)
    finished = (
        state["state"] == _FINISHED if state else any((folder / f).is_file() for f in (METRICS_FILE, REPORT_FILE))
    )
    if not finished or _continues(folder, cfg) or HydraConfig.get().mode == RunMode.MULTIRUN:
        return
    last = folder / "checkpoints" / "last.ckpt"
    way_out = f", or continue it with ckpt_path={last}" if "trainer" in cfg and last.is_file() else ""
    raise UserError(f"{folder} holds another run; choose another folder with hydra.run.dir=...{way_out}")


def _continues(folder: Path, cfg: DictConfig) -> bool:
    """Whether a run goes on with the one whose folder it is."""
    if slurm.is_slurm_restart():
        return True
    checkpoint = cfg.get("ckpt_path")
    inside = isinstance(checkpoint, str) and Path(checkpoint).resolve().is_relative_to(folder.resolve())
    return "trainer" in cfg and inside


def _lock(folder: Path, patience: float) -> bool:
    """Lock a folder for this process; False if another process has it.

    Args:
        folder: The folder.
        patience: Seconds to wait for the other process.

    Raises:
        UserError: Nothing can be written there.
    """
    path = folder / _CLAIM / "lock"
    deadline = time.monotonic() + patience
    try:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            if _lock_file(handle, path):
                if _is_same_file(handle, path):
                    _held[folder] = ("", handle)
                    return True
            elif time.monotonic() >= deadline:
                os.close(handle)
                return False
            else:
                time.sleep(0.5)
            os.close(handle)  # the folder was removed in between, or the other process is still there: once more
    except OSError as error:
        raise cannot_write(folder, error) from error


def _lock_file(handle: int, path: Path) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        warnings.warn(f"{path} cannot be locked ({error.strerror}): see to it that no other run has it", stacklevel=2)
    return True


def _is_same_file(handle: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _note(folder: Path, run: str, state: str) -> None:
    note = {"run": run, "state": state, "process": os.getpid(), "host": socket.gethostname()}
    note |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "command": " ".join(sys.argv)}
    write_json(folder / _CLAIM / "state.json", note)


def _state(folder: Path) -> dict[str, Any] | None:
    """What the last run in a folder noted; None if there was none."""
    try:
        note = json.loads((folder / _CLAIM / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and note.keys() >= {"run", "state", "process", "host", "started"} else None


def _is_part_of_a_run(folder: Path) -> bool:
    """Whether the run that has this folder started this process."""
    state = _state(folder)
    return folder not in _held and state is not None and state["run"] == os.environ.get(_RUN)

"""Chooses and makes the folder of a run or of a sweep before Hydra does, so that no two have the same by accident.

A folder that is named by the time (the default) is made by the run itself; if two runs start in the same second, the
second one's name ends in `-1`. Folders that were made for a run which then left nothing in them are removed again.
"""

from __future__ import annotations

import itertools
import re
import shutil
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from wdro_train.config import earlier_jobs, latest, run_folders, slurm
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import cannot_write

# Another process may remove a parent folder between two steps of ours; each time takes a run that ends just then.
_RETRIES = 10

_made: list[list[Path]] = []


def prepare_run(config: DictConfig) -> None:
    """Choose the folder of a single run before Hydra makes it.

    Args:
        config: With the node `hydra`, whose `run.dir` is changed if another run has that folder.

    Raises:
        UserError: The folder has no name, or cannot be made.
    """
    asked = "trainer" in config and config.get("resume", False)
    earlier_jobs.refuse_many_processes(asked, sweeping=False)
    if slurm.started_rank() > 0:
        return
    wanted = _typed(config)
    folder = Path(run_folders.named(config.hydra.run.dir, "hydra.run.dir") if wanted is None else wanted)
    dated = wanted is None and _is_dated(config.hydra.run)
    earlier_jobs.refuse_new_folder(dated, asked, "hydra.run.dir")
    if dated:
        folder = new_folder(folder)
        latest.plan(folder, _root(config.hydra.run))
    else:
        folder = latest.followed(folder)
        _make(folder)
        if wanted is not None:
            config.run_dir = str(folder)
    _set(config, "run", folder)


def prepare_sweep(config: DictConfig) -> None:
    """Choose the folder of a sweep before Hydra makes it.

    One that the user names may be shared; its jobs claim folders of their own.

    Args:
        config: With the node `hydra`, whose `sweep.dir` is changed if another sweep has that folder.

    Raises:
        UserError: The folder has no name or cannot be made, or all jobs would have the same.
    """
    asked = "trainer" in config and config.get("resume", False)
    earlier_jobs.refuse_many_processes(asked, sweeping=True)
    if slurm.started_rank() > 0:
        return
    if (one := _typed(config)) is not None:
        raise UserError(f"run_dir={one} would be one folder for all jobs of the sweep; use hydra.sweep.dir={one}")
    wanted = Path(run_folders.named(config.hydra.sweep.dir, "hydra.sweep.dir"))
    dated = _is_dated(config.hydra.sweep)
    earlier_jobs.refuse_new_folder(dated, asked, "hydra.sweep.dir")
    if dated:
        folder = new_folder(wanted)
        latest.plan(folder, _root(config.hydra.sweep))
    else:
        folder = latest.followed(wanted)
        _make(folder)
    if folder != wanted:
        _set(config, "sweep", folder)
        with read_write(config.hydra.overrides), open_dict(config.hydra.overrides):
            # The configuration of every job is composed afresh from these.
            quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")


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


def remove_unused() -> None:
    """Remove the folders that this process made and in which no run has left anything; their empty parents too."""
    for made in _made:
        folder, parents = made[0], made[1:]
        with suppress(OSError):
            if not run_folders.lock_if_unused(folder):
                continue
            shutil.rmtree(folder)
            latest.removed(folder)
            for path in parents:
                path.rmdir()
    _made.clear()


def _typed(config: DictConfig) -> str | None:
    """`run_dir`, if it is not the folder that Hydra chooses."""
    if "run_dir" not in config or OmegaConf.is_interpolation(config, "run_dir"):
        return None
    return run_folders.named(config.run_dir, "run_dir")


def _is_dated(node: DictConfig) -> bool:
    """Whether the time is in the name of a folder, so that nobody can mean an earlier run's by it."""
    name = str(OmegaConf.to_container(node, resolve=False)["dir"])  # type: ignore[index, call-overload]
    return "${now:" in name and not ("${run_folder:" in name and slurm.in_slurm_step())


def _root(node: DictConfig) -> Path | None:
    """The folder above the time in a folder's name, where the link to the newest is; None if its name is made, too."""
    name = str(OmegaConf.to_container(node, resolve=False)["dir"])  # type: ignore[index, call-overload]
    before = re.split(r"\$\{(?:now|run_folder):", name, maxsplit=1)[0]
    return None if "${" in before else Path(before.rpartition("/")[0])


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

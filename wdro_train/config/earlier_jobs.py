"""`resume=true`: what a run's folder holds of the same run, begun or finished before.

A finished run is only taken for the present one if its configuration and the version of this package are the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wdro_train.config import run_folders, slurm
from wdro_train.config.checkpoint_files import LAST_CHECKPOINT
from wdro_train.utils.errors import UserError

# They decide what is printed, and where a run goes on and writes, but not what comes out.
_IRRELEVANT = ("resume", "ckpt_path", "dry_run", "verbose", "run_dir")


@dataclass(frozen=True)
class Finished:
    """A run that need not be repeated.

    Attributes:
        score: What chose its best epoch, which the run would return; None if nothing chose.
    """

    score: float | None


def finished(cfg: DictConfig) -> Finished | None:
    """The run that has finished in this folder under the same configuration.

    Args:
        cfg: Of `train.py`, for a job of a sweep.

    Returns:
        None if there is no such run, or if what it left cannot be read: then it is judged again.
    """
    folder = Path(str(cfg.run_dir))
    if not (_asks(cfg) and run_folders.has_finished(folder) and not _changed(cfg, folder)):
        return None
    try:
        metrics = json.loads((folder / run_folders.METRICS_FILE).read_text(encoding="utf-8"))
        values, key = metrics["val"], str(metrics["monitor"]).removeprefix("val/")
        if key not in values:
            return Finished(None)
        return Finished(math.nan if values[key] is None else float(values[key]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def go_on(cfg: DictConfig, *, sweeping: bool) -> None:
    """Let a run that was begun in this folder under the same configuration go on from its last epoch.

    Args:
        cfg: Of `train.py`; its `ckpt_path` is set.
        sweeping: The run is a job of a sweep, which starts anew where the configuration is another one.

    Raises:
        UserError: A single run was begun there under another configuration.
    """
    folder = Path(str(cfg.run_dir))
    last = folder / LAST_CHECKPOINT
    if not (_asks(cfg) and last.is_file()):
        return
    changed = _changed(cfg, folder)
    if not changed:
        cfg.ckpt_path = str(last)
    elif not sweeping:
        raise UserError(
            f"resume=true: the run in {folder} was begun with other settings ({', '.join(changed)}); "
            f"repeat its command, or go on with the present ones by ckpt_path={last}"
        )


def refuse_new_folder(dated: bool, asked: bool, key: str) -> None:
    """Refuse to resume where there cannot be anything.

    Args:
        dated: The folder is named by the time.
        asked: `resume=true` was asked for.
        key: What names the folder.

    Raises:
        UserError: Both.
    """
    if dated and asked:
        raise UserError(f"resume=true goes on in a folder that is there; name it with {key}=...")


def refuse_many_processes(asked: bool, *, sweeping: bool) -> None:
    """Refuse to resume where processes that somebody else has started would each look for what is there.

    Args:
        asked: `resume=true` was asked for.
        sweeping: For a sweep.

    Raises:
        UserError: So it is, and only the first of them knows the folder.
    """
    if asked and slurm.started_ranks() > 1 and (sweeping or not slurm.in_slurm_step()):
        raise UserError(
            "resume=true needs a single process, and several were started; start python train.py trainer=ddp, which "
            "starts the others itself, or go on with one run by ckpt_path=..."
        )


def _asks(cfg: DictConfig) -> bool:
    return bool(cfg.get("resume", False)) and "trainer" in cfg and cfg.get("ckpt_path") is None


def _changed(cfg: DictConfig, folder: Path) -> list[str]:
    """The keys in which the run in a folder had another configuration, before anything is resolved in it."""
    now = _relevant(OmegaConf.to_container(cfg, resolve=False))
    stored = run_folders.stored_configuration(folder)
    before = {} if stored is None else _relevant(stored)
    return [key for key in {**now, **before} if key not in before or key not in now or before[key] != now[key]]


def _relevant(values: Any) -> dict[str, Any]:
    assert isinstance(values, Mapping)
    return {str(key): value for key, value in values.items() if key not in _IRRELEVANT}

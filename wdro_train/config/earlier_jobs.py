"""`resume=true`: what a run's folder holds of the same run, begun or finished before.

A finished run is only taken for the present one if its configuration and the version of this package are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wdro_train.config import run_folders
from wdro_train.config.checkpoint_files import LAST_CHECKPOINT
from wdro_train.utils.errors import UserError

# They decide what is printed, and where a run goes on, but not what comes out.
_IRRELEVANT = ("resume", "ckpt_path", "dry_run", "verbose")


def finished_score(cfg: DictConfig) -> float | None:
    """What chose the best epoch of the run that has finished in this folder under the same configuration.

    Args:
        cfg: Of `train.py`, for a job of a sweep.

    Returns:
        The score that the job would return; None if there is no such run.
    """
    folder = Path(str(cfg.run_dir))
    if not (_asks(cfg) and run_folders.has_finished(folder) and _is_same(cfg, folder)):
        return None
    metrics = json.loads((folder / run_folders.METRICS_FILE).read_text(encoding="utf-8"))
    score: float | None = metrics["val"].get(str(metrics["monitor"]).removeprefix("val/"))
    return score


def go_on(cfg: DictConfig) -> None:
    """Let a run that was begun in this folder under the same configuration go on from its last epoch.

    Args:
        cfg: Of `train.py`; its `ckpt_path` is set.

    Raises:
        UserError: A single run whose folder is new.
    """
    last = Path(str(cfg.run_dir)) / LAST_CHECKPOINT
    if _asks(cfg) and last.is_file() and _is_same(cfg, Path(str(cfg.run_dir))):
        cfg.ckpt_path = str(last)


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


def _asks(cfg: DictConfig) -> bool:
    return bool(cfg.get("resume", False)) and "trainer" in cfg and cfg.get("ckpt_path") is None


def _is_same(cfg: DictConfig, folder: Path) -> bool:
    """Whether the run in a folder had this configuration, before anything is resolved in it."""
    stored = run_folders.stored_configuration(folder)
    return stored is not None and _relevant(stored) == _relevant(OmegaConf.to_container(cfg, resolve=False))


def _relevant(values: Any) -> dict[str, Any]:
    assert isinstance(values, Mapping)
    return {str(key): value for key, value in values.items() if key not in _IRRELEVANT}

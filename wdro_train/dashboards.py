"""Loggers of a configuration, and W&B runs that end when the work does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import wandb
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger


def build_loggers(nodes: Mapping[str, Any] | None) -> list[Logger]:
    """The loggers of the configuration group `logger`; entries that are null are left out."""
    return [instantiate(node) for node in (nodes or {}).values() if node is not None]


def quiet_offline_wandb(nodes: Mapping[str, Any] | None) -> None:
    """Offline, W&B has nothing to say that our own last lines do not; online it gives the run's address."""
    if any(node is not None and node.get("offline") for node in (nodes or {}).values()):
        wandb.setup(wandb.Settings(mode="offline", silent=True))


@contextmanager
def closing_wandb() -> Iterator[None]:
    """Close the W&B run whatever happens, so that the next job of a sweep opens its own; as failed if it failed."""
    try:
        yield
    except BaseException:
        if wandb.run is not None:
            wandb.finish(exit_code=1)
        raise
    if wandb.run is not None:
        wandb.finish()


def offline_runs(loggers: list[Logger]) -> list[str]:
    """Folders of the offline W&B runs, for `wandb sync`."""
    runs = [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
    return [str(run.settings.sync_dir) for run in runs if run.offline]

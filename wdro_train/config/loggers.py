"""Loggers of a configuration, and W&B runs that end when the work does."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from wdro_train.config.constructors import construct
from wdro_train.config.one_sentence import one_sentence

_PACKAGES = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}


def build_loggers(nodes: Mapping[str, Any] | None) -> list[Logger]:
    """The loggers of the configuration group `logger`; entries that are null are left out."""
    loggers = [_build(node) for node in (nodes or {}).values() if node is not None]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _define_metrics(logger)
    return loggers


def _build(node: Any) -> Logger:
    def describe(error: Exception) -> str | None:
        if not isinstance(error.__cause__ or error, ModuleNotFoundError):
            return None
        name = str(node["_target_"]).rpartition(".")[2]
        package = _PACKAGES.get(name, name)
        return f"{name} needs the package {package}; run pip install {package}"

    with one_sentence(describe):
        logger: Logger = construct(node)
    return logger


def _define_metrics(logger: WandbLogger) -> None:
    """Curves over epochs, but the loss of every step over steps."""
    if not callable(getattr(logger.experiment, "define_metric", None)):
        return  # on ranks other than the first the experiment is a dummy
    for part in ("train", "val"):
        logger.experiment.define_metric(f"{part}/*", step_metric="epoch")
    logger.experiment.define_metric("train/loss_step", step_metric="trainer/global_step")


def summarize(loggers: Iterable[Logger], epoch: int, values: Mapping[str, float]) -> None:
    """Make the best epoch's values the summary of a W&B run: all of one epoch, not the best of each.

    While a run goes on, its summary is the last epoch.

    Args:
        loggers: Of the run.
        epoch: The best one, counted as the column `epoch` counts, from 0.
        values: Its validation values, without `val/`.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and hasattr(logger.experiment, "summary"):
            row = {f"val/{key}": value for key, value in values.items()}
            logger.experiment.summary.update({"best_epoch": epoch, **row})


def quiet_offline_wandb(nodes: Mapping[str, Any] | None) -> None:
    """Offline, W&B has nothing to say that our own last lines do not; online it gives the run's address."""
    if any(node is not None and node.get("offline") for node in (nodes or {}).values()):
        import wandb

        wandb.setup(wandb.Settings(mode="offline", silent=True))


@contextmanager
def closing_wandb() -> Iterator[None]:
    """Close the W&B run whatever happens, so that the next job of a sweep opens its own; as failed if it failed."""
    try:
        yield
    except BaseException:
        _finish_wandb(exit_code=1)
        raise
    _finish_wandb()


def _finish_wandb(exit_code: int | None = None) -> None:
    """Finish the W&B run if there is one; where nothing has imported W&B there is none."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=exit_code)


def offline_runs(loggers: list[Logger]) -> list[str]:
    """Folders of the offline W&B runs, for `wandb sync`."""
    runs = [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
    return [str(run.settings.sync_dir) for run in runs if run.offline]

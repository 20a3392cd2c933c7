"""What `train.py` and `evaluate.py` share: bad input ends in one sentence, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from wdro_train.errors import user_error_in


def run(task: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a task; a `UserError` anywhere below becomes its one sentence and exit code 1.

    In a sweep the error is passed on, so that the other jobs still run.

    Args:
        task: What to do with the configuration.
        cfg: The composed configuration.
    """
    try:
        return task(cfg)
    except Exception as error:
        found = user_error_in(error)
        if found is None or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        print(f"error: {found}", file=sys.stderr)
        raise SystemExit(1) from None

"""What `train.py` and `evaluate.py` share: bad input ends in one sentence, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from wdro_train.errors import user_error_in


def run(task: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a task; an error that the user can mend becomes its one sentence and exit code 1.

    In a sweep the error is passed on, so that the other jobs still run.

    Args:
        task: What to do with the configuration.
        cfg: The composed configuration.
    """
    try:
        return task(cfg)
    except Exception as error:
        reason = sentence(error)
        if reason is None or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        print(f"error: {reason}", file=sys.stderr)
        raise SystemExit(1) from None


def sentence(error: Exception) -> str | None:
    """What the user did wrong, on one line; None if it was not the user.

    Args:
        error: A `UserError` anywhere in the chain, or Lightning's complaint about its configuration.
    """
    found = user_error_in(error)
    if found is None and isinstance(error, MisconfigurationException):
        return " ".join(str(error).split())
    return None if found is None else str(found)


def comma_list(arguments: list[str], key: str) -> list[str]:
    """Command-line arguments in which `key=a,b` means the list [a,b], unless a sweep was asked for.

    Args:
        arguments: As typed, without the program's name.
        key: The key that may hold a list.

    >>> comma_list(["ckpt_path=a.ckpt,b.ckpt", "seed=1"], "ckpt_path")
    ['ckpt_path=[a.ckpt,b.ckpt]', 'seed=1']
    """
    if {"-m", "--multirun"} & set(arguments):
        return arguments
    start = f"{key}="
    return [
        f"{start}[{a.removeprefix(start)}]" if a.startswith(start) and "," in a and "[" not in a else a
        for a in arguments
    ]

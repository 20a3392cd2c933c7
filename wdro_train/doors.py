"""What the doors share: bad input ends in one sentence, and jobs on several devices get processes of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from wdro_train import jobs, run_folders, suggestions
from wdro_train.configuration import register_resolvers
from wdro_train.errors import user_error_in

_RAISE = "HYDRA_FULL_ERROR"


def open_door(main: Callable[[], Any], config_name: str) -> None:
    """Run a command line; a key or an option that does not exist ends in one sentence that names the nearest.

    Args:
        main: Decorated by `hydra.main`.
        config_name: Of its configuration.
    """
    sys.argv[1:] = jobs.quiet_rank(maximizing(sys.argv[1:]))
    wanted = os.environ.get(_RAISE)
    # Hydra prints and exits unless it is asked to raise; `run` takes the request back.
    os.environ[_RAISE] = "1" if wanted is None else wanted
    try:
        main()
    except HydraException as error:
        reason = suggestions.sentence(error, config_name, sys.argv[1:])
        if wanted is not None:
            raise
        print(f"error: {reason or error}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        os.environ.pop(_RAISE, None)
        run_folders.remove_unused()


def run(task: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run a task; an error that the user can mend becomes its one sentence and exit code 1.

    In a sweep the error is passed on, so that the other jobs still run.

    Args:
        task: What to do with the configuration.
        cfg: The composed configuration.
    """
    os.environ.pop(_RAISE, None)
    register_resolvers()  # launchers bring the task into processes that have never seen its module
    address = jobs.return_address()
    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    if sweeping:
        # The runs of a sweep are one group on a dashboard.
        os.environ["WANDB_RUN_GROUP"] = "/".join(Path(HydraConfig.get().sweep.dir).parts[-2:])
    try:
        with run_folders.claimed(cfg):
            result = jobs.in_fresh_process() if sweeping and jobs.needs_processes(cfg) else task(cfg)
        jobs.leave_result(result, address)
        return result
    except Exception as error:
        reason = sentence(error)
        if reason is None or sweeping:
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


def maximizing(arguments: list[str]) -> list[str]:
    """Both doors return accuracies, while Optuna would look for the lowest value unless it is told otherwise.

    Args:
        arguments: As typed, without the program's name.

    >>> maximizing(["-m", "hydra/sweeper=optuna"])
    ['-m', 'hydra/sweeper=optuna', 'hydra.sweeper.direction=maximize']
    """
    if "hydra/sweeper=optuna" not in arguments or any(a.startswith("hydra.sweeper.direction=") for a in arguments):
        return arguments
    return [*arguments, "hydra.sweeper.direction=maximize"]


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

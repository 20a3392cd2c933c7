"""What `train.py` and `evaluate.py` share: Hydra composes a configuration, it is checked, and the run works on it.

torch and Lightning take seconds to import. They are loaded when a run starts, so that `--help`, `--cfg job` and a
mistyped key are answered at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from wdro_train.cli import did_you_mean, help_text, processes
from wdro_train.cli.arguments import maximizing, quoted
from wdro_train.cli.endings import RAISE, ending, ending_in_a_sentence, leave, leaving_on_error, unexpected
from wdro_train.cli.error_messages import sentence
from wdro_train.cli.own_network import own_network
from wdro_train.config import earlier_jobs, new_folders, run_folders, typed_command
from wdro_train.config.checkpoint_files import LAST_CHECKPOINT
from wdro_train.config.resolvers import register_resolvers
from wdro_train.config.writable import refuse_unwritable
from wdro_train.utils import interruption

_CHECKPOINTS = ("ckpt_path", "finetune.ckpt_path")


def run_command_line(main: Callable[[], Any], config_name: str) -> None:
    """Run a command line; a key or an option that does not exist ends in one sentence that names the nearest.

    Args:
        main: Decorated by `hydra.main`.
        config_name: Of its configuration.
    """
    if help_text.wanted(sys.argv[1:]):
        if hasattr(signal, "SIGPIPE"):  # not on Windows
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends when nobody reads on
        print(help_text.text(config_name, sys.argv[1:]))
        return
    with ending_in_a_sentence(lambda error: did_you_mean.sentence(error, config_name, sys.argv[1:])):
        typed_command.remember(sys.argv)
        typed = own_network(quoted(sys.argv[1:], _CHECKPOINTS), config_name)
        sys.argv[1:] = processes.quiet_rank(maximizing(typed))
        os.environ[RAISE] = "1"  # Hydra prints and exits unless it is asked to raise; `run` takes the request back
        try:
            main()
        finally:
            new_folders.remove_unused()


def run(task: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Check the configuration and run a task on it; an error becomes one sentence and exit code 1.

    In a sweep the error is passed on, so that the other jobs still run.

    Args:
        task: What to do with the configuration.
        cfg: The composed configuration.
    """
    os.environ.pop(RAISE, None)
    register_resolvers()  # launchers bring the task into processes that have never seen its module
    address = processes.return_address()
    hydra = HydraConfig.get()
    sweeping = hydra.mode == RunMode.MULTIRUN
    if sweeping:
        # The runs of a sweep are one group on a dashboard.
        os.environ["WANDB_RUN_GROUP"] = "/".join(Path(hydra.sweep.dir).parts[-2:])
    try:
        if not sweeping:  # a refused run leaves alone what is in its folder
            _check(cfg)
        if sweeping and (before := earlier_jobs.finished(cfg)) is not None:
            return before.score
        earlier_jobs.go_on(cfg, sweeping=sweeping)
        with run_folders.claimed(cfg):
            if sweeping:  # while a refused job takes the place of an earlier one
                _check(cfg)
            result = processes.in_fresh_process(cfg) if sweeping and processes.needs_processes(cfg) else task(cfg)
        processes.leave_result(result, address)
        return result
    except BaseException as error:
        if interruption.exit_code() is not None:
            ending.advice = how_to_go_on(cfg, sys.argv, sweeping) if address is None else None
            raise
        if sweeping or not isinstance(error, Exception):
            raise
        reason = sentence(error)
        if reason is None and ending.tracebacks:
            os.environ[RAISE] = "1"
            raise
        leave(reason or unexpected(error, hydra.runtime.output_dir))


class CheckFirst(Callback):
    """Checks a single run before Hydra makes its folder; `run` checks each job of a sweep, which has its own."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse the configuration of a run.

        Raises:
            SystemExit: It has a value that cannot work.
        """
        with leaving_on_error():
            _check_values(config)


def how_to_go_on(cfg: DictConfig, argv: list[str], sweeping: bool = False) -> str:
    """What to type after a signal has ended a run.

    Args:
        cfg: Of the run.
        argv: What was typed.
        sweeping: The run is one of a sweep.
    """
    program = ["python", argv[0]] if argv[0].endswith(".py") else [Path(argv[0]).name]
    if _command(cfg) == "evaluate":
        again = "" if sweeping else f": {shlex.join([*program, *argv[1:]])}"
        return f"the same command goes on from what is finished{again}"
    last = Path(str(cfg.get("run_dir"))) / LAST_CHECKPOINT
    kept = [item for item in argv[1:] if not item.startswith(("ckpt_path=", "resume=", "hydra.sweep.dir="))]
    if sweeping:
        more = [f"hydra.sweep.dir={HydraConfig.get().sweep.dir}", "resume=true"]
        return f"go on with the sweep by {shlex.join([*program, *kept, *more])}"
    if not last.is_file():
        return f"no epoch was finished, start again with {shlex.join([*program, *kept])}"
    return f"resume with {shlex.join([*program, *kept, f'ckpt_path={last}'])}"


def _check(cfg: DictConfig) -> None:
    """Refuse values that cannot work, and folders that cannot be written to."""
    _check_values(cfg)
    for key in ("run_dir", "store"):
        if key in cfg:
            refuse_unwritable(key, cfg[key])


def _check_values(cfg: DictConfig) -> None:
    from wdro_train.cli import schemas  # which knows the constructors of torch and Lightning
    from wdro_train.config.own_networks import take_from_images

    if _command(cfg) == "train" or cfg.get("ckpt_path") is None:  # a checkpoint has the arguments of its network
        take_from_images(cfg)
    schemas.check(cfg, _command(cfg))


def _command(cfg: DictConfig) -> str:
    """The command that a configuration is for: a user's own one need not have the name of ours."""
    return "evaluate" if "curve" in cfg and "distances" in cfg else "train"

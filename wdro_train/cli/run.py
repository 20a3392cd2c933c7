"""What the doors share: bad input ends in one sentence, and jobs on several devices get processes of their own."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from wdro_train.cli import did_you_mean, processes, schemas
from wdro_train.cli.error_messages import sentence
from wdro_train.config import places, run_folders, slurm
from wdro_train.config.resolvers import register_resolvers
from wdro_train.utils import interruption

_RAISE = "HYDRA_FULL_ERROR"
_TRACEBACK = "traceback.txt"
_CHECKPOINTS = ("ckpt_path", "finetune.ckpt_path")
_advice: str | None = "nothing was begun"  # what to say when a signal ends the process
_tracebacks = False  # whether the user wants to see them


def open_door(main: Callable[[], Any], config_name: str) -> None:
    """Run a command line; a key or an option that does not exist ends in one sentence that names the nearest.

    Args:
        main: Decorated by `hydra.main`.
        config_name: Of its configuration.
    """
    with ending_in_a_sentence(lambda error: did_you_mean.sentence(error, config_name, sys.argv[1:])):
        sys.argv[1:] = processes.quiet_rank(maximizing(quoted(sys.argv[1:], _CHECKPOINTS)))
        os.environ[_RAISE] = "1"  # Hydra prints and exits unless it is asked to raise; `run` takes the request back
        try:
            main()
        finally:
            run_folders.remove_unused()


@contextmanager
def ending_in_a_sentence(explain: Callable[[Exception], str | None] = lambda error: None) -> Iterator[None]:
    """What ends the block ends the process in order: an error and a signal in one sentence each.

    `HYDRA_FULL_ERROR=1` in the environment shows the traceback of an error instead.

    Args:
        explain: What to say about an exception of Hydra, or None to say what Hydra says itself.
    """
    global _tracebacks
    before = os.environ.get(_RAISE)
    _tracebacks = before == "1"
    interruption.listen()
    try:
        yield
    except SystemExit:
        if interruption.exit_code() is None:
            raise
        _leave_interrupted()
    except BaseException as error:
        if interruption.exit_code() is not None:
            _leave_interrupted()
        if _tracebacks or not isinstance(error, Exception):
            raise
        reason = explain(error) or sentence(error)
        if reason is None and isinstance(error, HydraException):
            reason = " ".join(str(error).split())
        print(f"error: {reason or unexpected(error, None)}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        os.environ.pop(_RAISE, None)
        if before is not None:
            os.environ[_RAISE] = before


def run(task: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Check the configuration and run a task on it; an error becomes one sentence and exit code 1.

    In a sweep the error is passed on, so that the other jobs still run.

    Args:
        task: What to do with the configuration.
        cfg: The composed configuration.
    """
    global _advice
    os.environ.pop(_RAISE, None)
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
        with run_folders.claimed(cfg):
            if sweeping:  # while a refused job takes the place of an earlier one
                _check(cfg)
            result = processes.in_fresh_process() if sweeping and processes.needs_processes(cfg) else task(cfg)
        processes.leave_result(result, address)
        return result
    except BaseException as error:
        if interruption.exit_code() is not None:
            _advice = how_to_go_on(cfg, sys.argv, sweeping) if address is None else None
            raise
        if sweeping or not isinstance(error, Exception):
            raise
        reason = sentence(error)
        if reason is None and _tracebacks:
            os.environ[_RAISE] = "1"
            raise
        print(f"error: {reason or unexpected(error, hydra.runtime.output_dir)}", file=sys.stderr)
        raise SystemExit(1) from None


def _check(cfg: DictConfig) -> None:
    """Refuse values that cannot work, and folders that cannot be written to."""
    schemas.check(cfg, _door(cfg))
    for key in ("run_dir", "store"):
        if key in cfg:
            places.refuse_unwritable(key, cfg[key])


class CheckFirst(Callback):
    """Checks a single run before Hydra makes its folder; `run` checks each job of a sweep, which has its own."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse the configuration of a run.

        Raises:
            SystemExit: It has a value that cannot work.
        """
        with _stopping():
            schemas.check(config, _door(config))


@contextmanager
def _stopping() -> Iterator[None]:
    """Hydra makes a warning of what its callbacks raise."""
    try:
        yield
    except Exception as error:
        print(f"error: {sentence(error) or unexpected(error, None)}", file=sys.stderr)
        raise SystemExit(1) from None


def unexpected(error: BaseException, folder: str | Path | None) -> str:
    """Keep the traceback of an exception that nobody foresaw, and say where it is.

    Args:
        error: The exception.
        folder: Where to keep it; None, or one that cannot be written to, for a temporary file.
    """
    text = "".join(traceback.format_exception(error))
    try:
        file = Path(folder or tempfile.mkdtemp(prefix="wdro_train_")) / _TRACEBACK
        file.write_text(text)
    except OSError:
        file = Path(tempfile.mkdtemp(prefix="wdro_train_")) / _TRACEBACK
        file.write_text(text)
    said = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"{reason}; nobody foresaw this, its traceback is in {file}, and {_RAISE}=1 prints it"


def how_to_go_on(cfg: DictConfig, argv: list[str], sweeping: bool = False) -> str:
    """What to type after a signal has ended a run.

    Args:
        cfg: Of the run.
        argv: What was typed.
        sweeping: The run is one of a sweep.
    """
    program = ["python", argv[0]] if argv[0].endswith(".py") else [Path(argv[0]).name]
    if _door(cfg) == "evaluate":
        again = "" if sweeping else f": {shlex.join([*program, *argv[1:]])}"
        return f"the same command goes on from what is finished{again}"
    last = Path(str(cfg.get("run_dir"))) / "checkpoints" / "last.ckpt"
    typed = list(HydraConfig.get().overrides.task) if sweeping else argv[1:]
    kept = [item for item in typed if not item.startswith("ckpt_path=")]
    if not last.is_file():
        return f"no epoch was finished, start again with {shlex.join([*program, *kept])}"
    return f"resume with {shlex.join([*program, *kept, f'ckpt_path={last}'])}"


def _leave_interrupted() -> None:
    """Say how to go on and leave with the signal's exit code; ranks other than the first leave the saying to it."""
    interruption.finish()
    if slurm.started_rank() == 0 and _advice is not None:
        print(f"interrupted; {_advice}", file=sys.stderr)
    raise SystemExit(interruption.exit_code()) from None


def _door(cfg: DictConfig) -> str:
    """The door of a configuration: a user's own one need not have the name of ours."""
    return "evaluate" if "curve" in cfg and "distances" in cfg else "train"


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


def quoted(arguments: list[str], keys: tuple[str, ...]) -> list[str]:
    """Command-line arguments in which file names that Hydra would take apart, such as Lightning's own, are quoted.

    Args:
        arguments: As typed, without the program's name.
        keys: Keys whose values are files, or lists of files.

    >>> quoted(["ckpt_path=epoch=1-step=10.ckpt", "seed=1"], ("ckpt_path",))
    ["ckpt_path='epoch=1-step=10.ckpt'", 'seed=1']
    >>> quoted(["ckpt_path=[a=1.ckpt,b.ckpt]"], ("ckpt_path",))
    ["ckpt_path=['a=1.ckpt',b.ckpt]"]
    """
    return [_quoted(argument, keys) for argument in arguments]


def _quoted(argument: str, keys: tuple[str, ...]) -> str:
    key, found, value = argument.partition("=")
    if not found or key.lstrip("+") not in keys or re.search(r"['\"$]", value):
        return argument
    opened, inner, closed = ("[", value[1:-1], "]") if re.fullmatch(r"\[.*\]", value) else ("", value, "")
    files = [f"'{file}'" if "=" in file else file for file in inner.split(",")]
    return f"{key}={opened}{','.join(files)}{closed}"

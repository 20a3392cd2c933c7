"""A command that is called like a function, in the tests' own process: that is quick, and coverage sees it."""

import contextlib
import io
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from wdro_train.cli import evaluate, train
from wdro_train.config import run_folders
from wdro_train.evaluation.report import matplotlib_figures
from wdro_train.training import run_output

LIGHT = ["trainer=cpu", "model.width=4", "data.eval_batch_size=64", "callbacks.progress=null", "callbacks.images=null"]
_MAIN = {"train": train.main, "evaluate": evaluate.main}


class Ended(NamedTuple):
    """How a command has ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def only_png():
    """Figures as PNG alone: PDF and SVG take most of a short evaluation; test_comparison.py is about them."""
    return mock.patch.dict(matplotlib_figures._FORMATS, {"png": {}}, clear=True)


def call(command, *arguments, cwd, env=None):
    """Run `train` or `evaluate` in a folder, with figures as PNG; the process is as before afterwards.

    The arguments are those of the shell.
    """
    said, complained = io.StringIO(), io.StringIO()
    code = 0
    with (
        _as_before(),
        only_png(),
        contextlib.chdir(cwd),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
    ):
        os.environ.update(env or {})
        sys.argv = [f"{command}.py", *map(str, arguments)]
        try:
            _MAIN[command]()
        except SystemExit as end:
            code = end.code or 0
    return Ended(code, said.getvalue(), complained.getvalue())


def short_run(folder, *arguments):
    """A run of two steps on digits in `folder`/run; returns its best checkpoint."""
    short = [*LIGHT, "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    done = call("train", *short, "test=false", "logger=none", "hydra.run.dir=run", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run/checkpoints/best.ckpt"


@contextlib.contextmanager
def _as_before():
    """Give back what a process has once: arguments, environment, signals, loggers, Hydra's singletons, claims."""
    argv, environment, hydra = sys.argv, dict(os.environ), HydraConfig.instance().cfg
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root = logging.getLogger()
    run_log = logging.getLogger(run_output.LOG)
    level, sinks, lightning = root.level, root.handlers[:], logging.getLogger("lightning.pytorch").level
    try:
        yield
    finally:
        for folder in list(run_folders._held):
            run_folders.release(Path(folder))
        logging.getLogger("lightning.pytorch").setLevel(lightning)
        root.setLevel(level)
        root.handlers[:] = sinks
        for handler in run_log.handlers[:]:  # the file of the run that has ended
            run_log.removeHandler(handler)
            handler.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        HydraConfig.instance().cfg = hydra
        GlobalHydra.instance().clear()
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = argv

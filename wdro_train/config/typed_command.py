"""The command of a run, as it was typed: for reports, model cards, and whoever wants to repeat it.

What Hydra is given is another one (`wdro_train.cli.own_network`), and all jobs of a sweep have the same. The command
travels through the environment, because a job of a sweep may run in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from wdro_train.config import sweep_job

_COMMAND = "WDRO_TRAIN_COMMAND"


def remember(arguments: Sequence[str]) -> None:
    """Take note of what was typed, before it is rewritten.

    Args:
        arguments: With the program's name.
    """
    os.environ[_COMMAND] = " ".join(arguments)


def typed_command() -> str:
    """What was typed; in a job of a sweep followed by the job, as a comment of the shell.

    Where no command of this package runs, it is that of the present process.
    """
    command, job = os.environ.get(_COMMAND, " ".join(sys.argv)), sweep_job.current()
    return command if job is None else f"{command}  # {job}"

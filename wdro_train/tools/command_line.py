"""What the commands share: arguments are checked before any work, and what is wrong is said in one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from wdro_train.cli.endings import ending_in_a_sentence, leave
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.errors import UserError
from wdro_train.utils.float32_precision import full_float32
from wdro_train.utils.numbers import parse_number
from wdro_train.utils.written import TypedRadius


class Parser(argparse.ArgumentParser):
    """A parser that refuses arguments in one sentence and with exit code 1, as `train.py` and `evaluate.py` do."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and end.

        Args:
            message: What argparse says.
        """
        leave(f"{message.removeprefix('argument ')}; {self.prog} --help shows the options")


def parser(tool: str, document: str) -> Parser:
    """The parser of a command of this folder.

    Args:
        tool: Name of the command's module.
        document: The docstring of that module, whose first line says what the command is for.
    """
    return Parser(prog=f"python -m wdro_train.tools.{tool}", description=document.splitlines()[0])


def run(main: Callable[[], Any], *, default_float32: bool = False) -> None:
    """Run a command; an exception ends it with one sentence.

    Args:
        main: The command.
        default_float32: Float32 is computed as PyTorch does by default, which on a GPU rounds convolutions. Otherwise
            in full, so that a figure, those of other authors' attacks included, is the same on every device. Timings
            of training want the default, and so does `torch.export`, which refuses precisions that were set.
    """
    with ending_in_a_sentence(), nullcontext() if default_float32 else full_float32():
        main()


def whole(least: int) -> Callable[[str], int]:
    """A kind of argument: whole numbers from `least` on.

    Args:
        least: The smallest.
    """

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number of {least} or more")
        return number

    return convert


def ball(key: str) -> Callable[[str], float]:
    """A kind of argument: the order, norm or radius of a Wasserstein ball.

    Args:
        key: `p`, `norm` or `delta`.
    """

    def convert(text: str) -> float:
        threat = {"p": 2.0, "norm": 2.0, "delta": 0.0}
        try:
            return float(getattr(WassersteinBall(**threat | {key: parse_number(text, f"attack.{key}")}), key))
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error).replace("attack.", "")) from error

    return convert


def radii(text: str) -> list[TypedRadius]:
    """A kind of argument: positive radii, separated by commas, that remember how they were typed.

    Args:
        text: As typed.
    """
    found = [TypedRadius(ball("delta")(part), part.strip()) for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text} has a radius of 0; choose positive ones")
    return found


def checkpoint(text: str) -> str:
    """A kind of argument: the path of a checkpoint that is there.

    Args:
        text: As typed.
    """
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no checkpoint at {text}")
    return text


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Give a command its checkpoint, which may be left out.

    Args:
        parser: Of the command line.
    """
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=checkpoint,
        help="The checkpoint, as train.py writes it. By default it is the best one of the newest run.",
    )


def folder(text: str) -> Path:
    """A kind of argument: a folder that is there.

    Args:
        text: As typed.
    """
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)

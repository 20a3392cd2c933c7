"""Rewrites command-line arguments before Hydra reads them, where what people type means something else to Hydra."""

from __future__ import annotations

import re


def maximizing(arguments: list[str]) -> list[str]:
    """Tell Optuna to look for the highest value: both commands return accuracies, and it looks for the lowest.

    Args:
        arguments: As typed, without the program's name.

    >>> maximizing(["-m", "hydra/sweeper=optuna"])
    ['-m', 'hydra/sweeper=optuna', 'hydra.sweeper.direction=maximize']
    """
    if "hydra/sweeper=optuna" not in arguments or any(a.startswith("hydra.sweeper.direction=") for a in arguments):
        return arguments
    return [*arguments, "hydra.sweeper.direction=maximize"]


def comma_list(arguments: list[str], key: str) -> list[str]:
    """Let `key=a,b` mean the list [a,b], unless a sweep was asked for, where it means one job for a and one for b.

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
    """Quote file names that Hydra would take apart, such as Lightning's own, which hold an equals sign.

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

"""A configuration that was read from a file is data: plain values, of which nothing is resolved or run.

Whoever writes a checkpoint chooses every value in its configuration. An object of another type could run code when it
is read or used, and an interpolation (`${...}`) could put a secret from the environment into a report.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from wdro_train.utils.errors import UserError

PLAIN_TYPES = (str, int, float, bool, type(None))
_SPECIAL_KEY = re.compile(r"_.*_")  # how Hydra marks what it does not hand to a constructor
_MOST_VALUES = 100_000  # a configuration has hundreds; a list that is shared many times over counts every time
_DEEPEST = 50  # a configuration has about six levels; a list inside itself has any number
_LARGEST = 2**64  # seeds have 64 bits, and Python refuses to print integers of thousands of digits
SHOWN_CHARACTERS = 80
"""So much of a value is shown in an error message."""


def plain_values(tree: Any, source: str | Path) -> dict[str, Any]:
    """A configuration of which nothing can be resolved or run: dicts, lists, strings, numbers, booleans and None.

    Args:
        tree: What was read.
        source: Where it comes from, for the error message.

    Returns:
        The same tree.

    Raises:
        UserError: It holds another kind of object, an interpolation (`${...}`), a value that is missing (`???`), or
            more values than any configuration.
    """
    if type(tree) is not dict:
        raise UserError(f"{source} holds no configuration but {shown(tree)}; use a checkpoint that train.py wrote")
    count = 0
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    while waiting:
        where, value, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise UserError(
                f"{source} holds a configuration of over {_MOST_VALUES} values or {_DEEPEST} levels; use a checkpoint "
                "that train.py wrote"
            )
        if type(value) is dict:
            for key, part in value.items():
                inside = f"{where}.{shown(key)}" if where else shown(key)
                waiting += [(inside, key, depth + 1), (inside, part, depth + 1)]
        elif type(value) is list:
            waiting += [(f"{where}[{index}]", part, depth + 1) for index, part in enumerate(value)]
        elif type(value) not in PLAIN_TYPES or (type(value) is int and abs(value) >= _LARGEST):
            raise UserError(
                f"{source} has {shown(value)} at {where}, where a configuration has dicts, lists, strings, numbers, "
                "booleans and null; use a checkpoint that train.py wrote"
            )
        elif type(value) is str and ("${" in value or value == "???"):
            raise UserError(
                f"{source} has {shown(value)} at {where}, and what a file refers to is not looked up; use a "
                "checkpoint that train.py wrote"
            )
    return tree


def without_special_keys(tree: Any) -> Any:
    """The values of a file for a user's configuration to refer to: none of them is a constructor.

    Args:
        tree: Plain values.
    """
    if isinstance(tree, list):
        return [without_special_keys(part) for part in tree]
    if isinstance(tree, dict):
        return {key: without_special_keys(part) for key, part in tree.items() if not is_special_key(str(key))}
    return tree


def is_special_key(key: str) -> bool:
    """Whether Hydra reads a key as an instruction: `_target_`, `_args_`, `_partial_` and all others of this form.

    Args:
        key: Of a dictionary in a configuration.
    """
    return _SPECIAL_KEY.fullmatch(key) is not None


def shown(value: Any) -> str:
    """A key or value of a file, for a message: short, on one line, and without control characters.

    Args:
        value: Whatever the file holds.
    """
    if type(value) is int and abs(value) >= _LARGEST:
        return "a number of more than 64 bits"
    if type(value) is str:
        text = value.encode("unicode_escape").decode()
    else:
        text = repr(value) if type(value) in PLAIN_TYPES else f"a {type(value).__name__}"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."

"""Configurations as flat lists of values, and when two values are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a tree by keys with dots; positions in lists are keys too.

    Args:
        node: Dictionaries, lists and plain values.
        prefix: The key of the node itself.

    >>> flat({"data": {"shape": [1, 8]}, "seed": 0})
    {'data.shape.0': 1, 'data.shape.1': 8, 'seed': 0}
    """
    if isinstance(node, Mapping):
        items = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple):
        items = [(str(position), value) for position, value in enumerate(node)]
    else:
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flat(value, f"{prefix}.{key}" if prefix else key)
    return found


def same_value(a: Any, b: Any) -> bool:
    """Whether two plain values are equal, numbers as people type them.

    >>> same_value("8/255", 8 / 255), same_value("inf", float("inf")), same_value(1, True), same_value(0, None)
    (True, True, False, False)
    """
    if type(a) is type(b) and a == b:
        return True
    if any(value is None or isinstance(value, bool) for value in (a, b)):
        return False
    try:
        return parse_number(a, "") == parse_number(b, "")
    except UserError:
        return bool(a == b)

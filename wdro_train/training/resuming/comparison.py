"""What is configured otherwise than in a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wdro_train.config.signatures import located, taken
from wdro_train.training.resuming.kinds import DATA_DIGEST, Kind, kind
from wdro_train.training.resuming.values import flat, same_value
from wdro_train.utils.renamed import with_present_names


@dataclass(frozen=True)
class Change:
    """A key of the configuration with another value than in the checkpoint.

    Attributes:
        key: With dots.
        before: The value in the checkpoint; None where there is no such key.
        now: The present value, likewise.
        kind: What the key decides about.
    """

    key: str
    before: Any
    now: Any
    kind: Kind

    def __str__(self) -> str:
        """As it stands in a sentence."""
        before, now = ("none" if value is None else value for value in (self.before, self.now))
        return f"{self.key} {before} -> {now}"


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two resolved configurations, sorted into kinds.

    A class that has another name now than when the checkpoint was written is no difference.

    Args:
        before: The configuration in the checkpoint.
        now: The one that is to go on.
    """
    before, now = with_present_names(before), with_present_names(now)
    old, new = flat(before), flat(now)
    changes = []
    for key in sorted(old.keys() | new.keys()):
        if key == DATA_DIGEST and None in (old.get(key), new.get(key)):
            continue  # one of them does not know its images
        if key not in old and _is_default(key, old, new):
            continue  # an argument that there was not yet, which says what was done without it
        if not same_value(old.get(key), new.get(key)):
            changes.append(Change(key, old.get(key), new.get(key), kind(key, before, now)))
    return changes


def _is_default(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a new setting has the value that the constructor, which both configurations name, gives it by default."""
    node, _, name = key.rpartition(".")
    target = new.get(f"{node}._target_")
    if target is None or old.get(f"{node}._target_") != target:
        return False
    defaults = {argument.name: argument.default for argument in taken(located(target)) or ()}
    return defaults.get(name, inspect.Parameter.empty) is not inspect.Parameter.empty and same_value(
        new[key], defaults[name]
    )


def list_of(changes: list[Change]) -> str:
    """Changes as they stand in a sentence, the first few by name."""
    shown = 6  # a sentence of more is not read
    more = f" and {len(changes) - shown} more" if len(changes) > shown else ""
    return ", ".join(map(str, changes[:shown])) + more

"""What tables and figures call the networks: the `labels` that the user gives, one for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wdro_train.evaluation.networks import JudgedNetwork
from wdro_train.utils.errors import UserError


def check_labels(labels: Sequence[str], networks: int) -> None:
    """Refuse labels that do not tell the networks apart.

    Args:
        labels: As the user gives them.
        networks: Number of networks to be judged.

    Raises:
        UserError: As many labels as networks are needed, no two of them the same.
    """
    shown = f"labels=[{','.join(labels)}]"
    if len(labels) != networks:
        judged = "1 is" if networks == 1 else f"{networks} are"
        raise UserError(
            f"{shown} names {_count(len(labels))}, but {judged} judged; give one name for each network, in their order"
        )
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(f"{shown} has {twice!r} more than once; give each network a name of its own")


def labelled(networks: Sequence[JudgedNetwork], labels: Sequence[str] | str | None) -> list[JudgedNetwork]:
    """The networks under the names that the user gives them.

    Args:
        networks: In the order of the command line.
        labels: The configuration's `labels`; None leaves each its run folder or file.

    Raises:
        UserError: See `check_labels`.
    """
    if labels is None:
        return list(networks)
    names = listed(labels)
    check_labels(names, len(networks))
    return [replace(network, name=name) for network, name in zip(networks, names, strict=True)]


def listed(labels: Sequence[str] | str) -> list[str]:
    """Labels as a list: a single one may be given by itself."""
    return [labels] if isinstance(labels, str) else list(labels)


def _count(number: int) -> str:
    return "1 network" if number == 1 else f"{number} networks"

"""How the radii of an evaluation are written: as they were typed, in the command or in the data's configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from wdro_train.utils.written import WrittenRadii


def typed_radii(config: Mapping[str, Any], trained: Iterable[Mapping[str, Any]], threat: float) -> WrittenRadii:
    """How to write radii.

    Args:
        config: Of `evaluate.py`, with radii as they were typed.
        trained: Of the networks' trainings, with the radii of their data.
        threat: The radius of the threat.
    """
    typed = [(config.get("attack") or {}).get("delta")]
    for part in ("curve", "poster", "first_order"):
        typed += (config.get(part) or {}).get("deltas") or []
    typed += [text for one in trained for text in trained_radii(one)]
    return WrittenRadii(WrittenRadii(None, typed)(threat) if threat > 0 else None, typed)


def trained_radii(config: Mapping[str, Any]) -> list[str]:
    """The radii of a training and of its data as they were typed; numbers there follow from such texts.

    Args:
        config: Of the training, from a file that may be damaged.
    """
    attack, data = (part if isinstance(part := config.get(name), Mapping) else {} for name in ("attack", "data"))
    of_data = data.get("delta")
    radii = [attack.get("delta"), *(of_data.values() if isinstance(of_data, Mapping) else [])]
    return [radius for radius in radii if isinstance(radius, str)]

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
    for one in trained:
        radii = [(one.get("attack") or {}).get("delta"), *((one.get("data") or {}).get("delta") or {}).values()]
        typed += [radius for radius in radii if isinstance(radius, str)]  # numbers there follow from such texts
    return WrittenRadii(WrittenRadii(None, typed)(threat) if threat > 0 else None, typed)

"""The JSON files that a study is made of: read in one place, and refused in a sentence where they are damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.tools.accuracies import ORDERS
from wdro_train.utils.errors import UserError

_NUMBER = (int, float)
_Kinds = Mapping[str, type | tuple[type, ...]]
_METRICS: _Kinds = {"command": str, "threat": dict, "epochs": int}
_JUDGED: _Kinds = {
    "method": str,
    "seed": int,
    "images": int,
    "norm": str,
    "clean": _NUMBER,
    "deltas": list,
    "passes": _NUMBER,
}
_PARTS: Mapping[str, _Kinds] = {
    "certified": {"method": str, "images": int},
    "check": {"images": int, "autoattack": _NUMBER},
    "effort": {"images": int},
}
_ACCURACIES = {"certified": "accuracies", "effort": "more"}  # of a part, by order and radius


def read_metrics(run: Path) -> dict[str, Any]:
    """The `metrics.json` of a run, with the keys that are read of it.

    Args:
        run: Its folder.

    Raises:
        UserError: It is damaged.
    """
    file = run / METRICS_FILE
    content = _object(file)
    if not _has(content, _METRICS):
        raise UserError(f"{file} is not what train.py writes; train this run again, or remove the file to leave it out")
    return cast(dict[str, Any], content)


def read_judged(file: Path) -> dict[str, Any]:
    """What a run was judged, from `runs/<method>_<seed>.json`.

    Args:
        file: The file.

    Raises:
        UserError: It is damaged, or about another run than its name says.
    """
    content = _object(file)
    method, _, seed = file.stem.rpartition("_")
    if not _is_judged(content) or method != content["method"] or seed.lstrip("0") != f"{content['seed'] or ''}":
        raise UserError(f"{file} is not what this command writes; remove it to judge its run again")
    return cast(dict[str, Any], content)


def _object(file: Path) -> Any:
    """The content of a JSON file; None where there is none that can be read."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _has(content: Any, kinds: _Kinds) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(key), kind) for key, kind in kinds.items())


def _is_judged(content: Any) -> bool:
    if not _has(content, _JUDGED) or not _numbers(content["deltas"]):
        return False
    radii = content.get("accuracies", {}).get("2") if isinstance(content.get("accuracies"), dict) else None
    if not isinstance(radii, dict) or not _by_order(content, "accuracies", radii):
        return False
    if not _is_curve(content, len(content["deltas"])):
        return False
    for name, kinds in _PARTS.items():
        part = content.get(name, {})
        if name in content and not _has(part, kinds):
            return False
        if name in content and name in _ACCURACIES and not _by_order(part, _ACCURACIES[name], radii):
            return False
    return "certified" not in content or _is_curve(content["certified"], len(content["deltas"]))


def _by_order(content: dict[str, Any], key: str, radii: Mapping[str, Any]) -> bool:
    """Whether it has a number for each order and each radius."""
    found = content.get(key)
    return isinstance(found, dict) and all(
        isinstance(found.get(p), dict) and found[p].keys() == radii.keys() and _numbers(found[p].values())
        for p in ORDERS
    )


def _is_curve(content: dict[str, Any], length: int) -> bool:
    """Whether it has a curve of that many points for each order."""
    found = content.get("curves")
    return isinstance(found, dict) and all(
        isinstance(found.get(p), list) and len(found[p]) == length and _numbers(found[p]) for p in ORDERS
    )


def _numbers(values: Any) -> bool:
    return all(isinstance(value, _NUMBER) for value in values)

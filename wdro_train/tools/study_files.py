"""The JSON files that a study is made of: read in one place, and refused in a sentence where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.tools.accuracies import ORDERS
from wdro_train.utils.errors import UserError

_ByOrder = dict[str, dict[str, float]]  # and by radius


class _Metrics(BaseModel):
    """What is read of the `metrics.json` of a run."""

    model_config = ConfigDict(strict=True)
    command: str
    threat: dict[str, Any]
    epochs: int


class _Check(BaseModel):
    model_config = ConfigDict(strict=True)
    images: int
    autoattack: float


class _Effort(BaseModel):
    model_config = ConfigDict(strict=True)
    images: int
    more: _ByOrder


class _Certified(BaseModel):
    model_config = ConfigDict(strict=True)
    method: str
    images: int
    accuracies: _ByOrder
    curves: dict[str, list[float]]


class _Judged(BaseModel):
    """What is read of `runs/<method>_<seed>.json`; a part that was not asked for is not there."""

    model_config = ConfigDict(strict=True)
    method: str
    seed: int
    images: int
    norm: str
    clean: float
    deltas: list[float]
    passes: float
    accuracies: _ByOrder
    curves: dict[str, list[float]]
    certified: _Certified | None = None
    check: _Check | None = None
    effort: _Effort | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Every order has a point of the curve for each radius, and the radii of the table are those of every part."""
        if any(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("a part is empty")
        tables = [self.accuracies, *([self.certified.accuracies] if self.certified else [])]
        tables += [self.effort.more] if self.effort else []
        radii = self.accuracies.get("2", {}).keys()
        if not all(p in one and one[p].keys() == radii for one in tables for p in ORDERS):
            raise ValueError("an order or a radius is missing")
        drawn = [self.curves, *([self.certified.curves] if self.certified else [])]
        if not all(len(one.get(p, [])) == len(self.deltas) for one in drawn for p in ORDERS):
            raise ValueError("a curve has another length than its radii")
        return self


def read_metrics(run: Path) -> dict[str, Any]:
    """The `metrics.json` of a run, with the keys that are read of it.

    Args:
        run: Its folder.

    Raises:
        UserError: It is damaged.
    """
    file = run / METRICS_FILE
    content = _object(file)
    if not _fits(content, _Metrics):
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
    if not _fits(content, _Judged) or method != content["method"] or seed.lstrip("0") != f"{content['seed'] or ''}":
        raise UserError(f"{file} is not what this command writes; remove it to judge its run again")
    return cast(dict[str, Any], content)


def _object(file: Path) -> Any:
    """The content of a JSON file; None where there is none that can be read."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _fits(content: Any, model: type[BaseModel]) -> bool:
    try:
        model.model_validate(content)
    except ValidationError:
        return False
    return True

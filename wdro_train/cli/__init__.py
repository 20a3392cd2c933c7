"""The two commands: `wdro-train` and `wdro-evaluate`, which are `train.py` and `evaluate.py` of a clone."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# Inside the package in a wheel, beside it in a clone.
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if (folder / "train.yaml").is_file())

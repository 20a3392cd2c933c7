"""Checkpoints: reading them safely, and saying clearly what does not fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wdro_train.errors import UserError
from wdro_train.module import CONFIG_KEY, RobustClassifier


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this program, read with `weights_only=True`.

    Raises:
        UserError: Missing, unreadable or foreign file.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no checkpoint at {file}; give the path of a .ckpt file as ckpt_path")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{file} cannot be read as a checkpoint ({reason}); use one that train.py wrote") from error
    if not isinstance(content, dict) or "state_dict" not in content or CONFIG_KEY not in content:
        raise UserError(f"{file} was not written by wdro_train; use a checkpoint that train.py wrote")
    return content


def check_weights(module: RobustClassifier, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Refuse weights of another network, before anything is loaded.

    Raises:
        UserError: Names the first key that is missing, unexpected or of another shape.
    """
    theirs: dict[str, Tensor] = checkpoint["state_dict"]
    ours = module.state_dict()
    for kind, keys in (
        ("lacks", ours.keys() - theirs.keys()),
        ("has the extra", theirs.keys() - ours.keys()),
    ):
        if keys:
            raise UserError(
                f"{path} holds another network: it {kind} weight {min(keys)} ({len(keys)} such); "
                "choose the model and data it was trained with"
            )
    for key, value in ours.items():
        if theirs[key].shape != value.shape:
            raise UserError(
                f"{path} holds another network: {key} has shape {tuple(theirs[key].shape)}, not "
                f"{tuple(value.shape)}; choose the model and data it was trained with"
            )

"""Checkpoints: reading them safely, and saying clearly what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from wdro_train.training.module import CONFIG_KEY, RobustClassifier
from wdro_train.utils.errors import UserError
from wdro_train.utils.plain_values import plain_values
from wdro_train.utils.renamed import with_present_names
from wdro_train.utils.tensor_files import UnreadableError, read_tensors


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this program: tensors, and a configuration of plain values.

    Constructors that the configuration names by where an earlier version had them are named by where they are now.
    Nothing in the file is run and nothing in its configuration is resolved; see `wdro_train.utils.plain_values`.

    Raises:
        UserError: Missing, unreadable or foreign file, or a configuration of more than plain values.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no checkpoint at {file}; give the path of a .ckpt file as ckpt_path")
    try:
        content = read_tensors(file)
    except UnreadableError as error:
        raise UserError(f"{file} cannot be read as a checkpoint ({error}); use one that train.py wrote") from error
    if not isinstance(content, dict) or not {"state_dict", CONFIG_KEY} <= content.keys():
        raise UserError(f"{file} was not written by wdro_train; use a checkpoint that train.py wrote")
    if not isinstance(content["state_dict"], dict):
        raise UserError(f"{file} holds no weights; use a checkpoint that train.py wrote")
    return content | {CONFIG_KEY: with_present_names(plain_values(content[CONFIG_KEY], file))}


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
        if not isinstance(theirs[key], Tensor):
            raise UserError(f"{path} holds no weights for {key}; use a checkpoint that train.py wrote")
        if theirs[key].shape != value.shape:
            raise UserError(
                f"{path} holds another network: {key} has shape {tuple(theirs[key].shape)}, not "
                f"{tuple(value.shape)}; choose the model and data it was trained with"
            )

"""Leaving a part of a network as it is while the rest is trained."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from wdro_train.utils.errors import UserError


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take parameters out of the training.

    Layers of which nothing is trained are put into evaluation mode, so that their BatchNorm statistics stay too.

    Args:
        model: Is changed.
        patterns: Of the names of parameters, such as `0.*` or `features.*`.

    Raises:
        UserError: A pattern without a match, or nothing left to train.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        frozen = [name for name in parameters if fnmatchcase(name, pattern)]
        if not frozen:
            raise UserError(f"finetune.freeze={pattern} matches no parameter; they are {', '.join(parameters)}")
        for name in frozen:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"finetune.freeze={list(patterns)} leaves nothing to train; freeze less")
    for part in model.modules():
        own = list(part.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            part.eval()  # the trainer keeps the mode of every part

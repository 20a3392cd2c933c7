"""Starting from a trained network: what to keep of it, and what to leave as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from wdro_train.training.checkpoint import check_weights, read_checkpoint
from wdro_train.training.module import RobustClassifier
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number


def keep(model: nn.Module, noise: float) -> None:
    """The network as it is."""


def reinit_head(model: nn.Module, noise: float) -> None:
    """A fresh last layer.

    Raises:
        UserError: The network has no layer that can be initialised anew.
    """
    heads = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    if not heads:
        raise UserError(f"{type(model).__name__} has no linear or convolutional layer to be its head; use init=keep")
    heads[-1].reset_parameters()


def perturb(model: nn.Module, noise: float) -> None:
    """Every weight tensor plus Gaussian noise of `noise` times its root mean square."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * parameter.square().mean().sqrt() * torch.randn_like(parameter))


INITS: dict[str, Callable[[nn.Module, float], None]] = {"keep": keep, "reinit_head": reinit_head, "perturb": perturb}


def start_from(
    module: RobustClassifier,
    ckpt_path: str | None,
    *,
    init: str = "keep",
    noise: float = 0.01,
    freeze: Sequence[str] | str = (),
) -> None:
    """Load the network of a checkpoint, and nothing else of it: training starts at epoch 0.

    Args:
        module: The module to train.
        ckpt_path: A checkpoint of the same network; None keeps the network that the module has.
        init: `keep`, `reinit_head` or `perturb`.
        noise: Relative size of the noise of `perturb`, >= 0.
        freeze: Patterns (`0.*`, `features.*`) of the names of parameters that are not trained. Layers of which
            nothing is trained are in evaluation mode, so that their BatchNorm statistics stay too.

    Raises:
        UserError: Missing or foreign checkpoint, unknown `init`, a pattern without a match, or nothing left to train.
    """
    if init not in INITS:
        raise UserError(f"finetune.init={init} is unknown; choose {', '.join(INITS)}")
    if not 0 <= (scale := parse_number(noise, "finetune.noise")) < math.inf:
        raise UserError(f"finetune.noise={noise} is no size; choose 0 or more")
    if ckpt_path is not None:
        checkpoint = read_checkpoint(ckpt_path)
        check_weights(module, checkpoint, ckpt_path)
        module.load_state_dict(checkpoint["state_dict"])
        INITS[init](module.model, scale)
    elif init != "keep":
        raise UserError(f"finetune.init={init} has no network to start from; give finetune.ckpt_path=...")
    _freeze(module.model, [freeze] if isinstance(freeze, str) else freeze)


def _freeze(model: nn.Module, patterns: Sequence[str]) -> None:
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

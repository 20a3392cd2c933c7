"""Starting a new run from a trained network, and what of that network is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from wdro_train.training.checkpoint import check_weights, read_checkpoint
from wdro_train.training.freezing import freeze_parameters
from wdro_train.training.module import RobustClassifier
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number


def keep(model: nn.Module, noise: float) -> None:
    """Keep the network as it is; `noise` is not used."""


def reinit_head(model: nn.Module, noise: float) -> None:
    """Initialise the last linear or convolutional layer anew, for other classes or another loss; `noise` is not used.

    Raises:
        UserError: The network has no layer that can be initialised anew.
    """
    heads = [part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    if not heads:
        raise UserError(f"{type(model).__name__} has no linear or convolutional layer to be its head; use init=keep")
    heads[-1].reset_parameters()


def perturb(model: nn.Module, noise: float) -> None:
    """Shake the network off its minimum: add Gaussian noise of `noise` times its root mean square to every tensor."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * parameter.square().mean().sqrt() * torch.randn_like(parameter))


INITS: dict[str, Callable[[nn.Module, float], None]] = {"keep": keep, "reinit_head": reinit_head, "perturb": perturb}
"""What can be done to the network of a checkpoint, by the value of `finetune.init`."""


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
    freeze_parameters(module.model, [freeze] if isinstance(freeze, str) else freeze)

"""The mode that a network is in while it is attacked, and what it is afterwards: exactly as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from wdro_train.utils.contract import CheckedBatch, check_batch
from wdro_train.utils.errors import UserError

BatchNormMode = Literal["eval", "train"]


@contextmanager
def attack_mode(model: nn.Module, batch_norm: BatchNormMode = "eval") -> Iterator[None]:
    """The model in the mode an attack runs in; afterwards the flags and buffers of every submodule are as before.

    Inside, inference mode is left and gradients are on. The autocast weight cache is off, since casts that were cached
    under inference mode cannot be differentiated. The backward pass of a compiled network has the gradients that were
    asked for when it was compiled, so its weights ask for none in here.

    Args:
        model: The network.
        batch_norm: `eval` freezes BatchNorm and dropout. `train` keeps every submodule's own flag, and what the forward
            passes do to its buffers is undone afterwards.
    """
    flags = {module: module.training for module in model.modules()}
    cached = torch.is_autocast_cache_enabled()
    weights = [w for w in model.parameters() if w.requires_grad] if _is_compiled(model) else []
    with torch.inference_mode(False), torch.enable_grad():
        buffers = [(b, b.clone()) for b in model.buffers()] if batch_norm == "train" else []
        try:
            torch.set_autocast_cache_enabled(False)
            if batch_norm == "eval":
                model.eval()
            for weight in weights:
                weight.requires_grad_(False)
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
            for weight in weights:
                weight.requires_grad_(True)
            for module, training in flags.items():
                module.training = training
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def _is_compiled(model: nn.Module) -> bool:
    """Whether a part of the model was compiled, by `module.compile()` or by `torch.compile(module)`."""
    return any(module._compiled_call_impl is not None or hasattr(module, "_orig_mod") for module in model.modules())


@contextmanager
def batch_under_attack(
    model: nn.Module, x: Tensor, y: Tensor, batch_norm: BatchNormMode = "eval"
) -> Iterator[CheckedBatch]:
    """What every attack begins with: a checked batch in float32, and the model in `attack_mode` while it works on it.

    The tensors inside are copies, since those of inference mode (in which a trainer validates) take no gradient.

    Args:
        model: See `attack_mode`.
        x: Images in [0, 1], floating point of any width, shape [B, ...].
        y: Labels of any integer type, shape [B].
        batch_norm: See `attack_mode`.

    Raises:
        UserError: See `check_batch`.
    """
    x, y, labels = check_batch(x, y)
    with attack_mode(model, batch_norm):
        yield CheckedBatch(x.clone().float(), y.clone(), labels)


def resolve_batch_norm(mode: str) -> BatchNormMode:
    """The mode that a configuration asks for.

    Args:
        mode: `attack.batch_norm`.

    Raises:
        UserError: Neither `eval` nor `train`.
    """
    if mode in get_args(BatchNormMode):
        return cast(BatchNormMode, mode)
    raise UserError(f"attack.batch_norm={mode!r} is unknown; choose eval or train")

"""What attacks ask of a network: its logits, and the gradient of a loss with respect to the images alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wdro_train.theory.losses import LossFunction
from wdro_train.utils.contract import logits_of
from wdro_train.utils.errors import UserError

_FP16_LOSS_SCALE = 2.0**12


class InputGradient(NamedTuple):
    """J and grad_x J of a batch; gradients that were not finite are 0 and counted."""

    logits: Tensor
    losses: Tensor
    gradient: Tensor
    nonfinite: Tensor


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: LossFunction, batch_size: int | None = None
) -> InputGradient:
    """One forward and one backward with respect to the images only; parameter gradients are not touched.

    Args:
        model: Maps images to logits; call inside `attack_mode`.
        x: Images, shape [B, ...], float32.
        y: Labels, shape [B], or whatever else the loss is told about each image, one row an image.
        loss: Per-image loss. It is called batch by batch, so it must know of the images what `y` says and no more.
        batch_size: Images per forward pass; None for all at once.

    Returns:
        Logits [B, m], losses [B], gradient [B, ...] float32, and the number of non-finite gradients.
    """
    if batch_size is not None and len(x) > batch_size:
        chunks = zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
        parts = [input_gradient(model, images, labels, loss) for images, labels in chunks]
        return InputGradient(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.losses for part in parts]),
            torch.cat([part.gradient for part in parts]),
            torch.stack([part.nonfinite for part in parts]).sum(),
        )
    x = x.detach().requires_grad_()
    logits = forward(model, x)
    losses = loss(logits, y)
    scale = _loss_scale(x.device)
    gradient = torch.zeros_like(x)
    if losses.requires_grad:  # a network of steps (quantised, say) has no gradient, which is worth a count, not a crash
        (found,) = torch.autograd.grad(losses.sum() * scale, x, allow_unused=True)
        gradient = gradient if found is None else found
    finite = gradient.flatten(1).isfinite().all(1) & losses.detach().isfinite()
    usable = finite.view(-1, *[1] * (x.dim() - 1))
    gradient = torch.where(usable, gradient / scale, torch.zeros_like(gradient))
    return InputGradient(logits.detach(), losses.detach(), gradient, (~finite).sum())


def forward(model: nn.Module, x: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits of float32 images, cast to the parameters' type on the way in (true half precision).

    Args:
        model: Maps images to logits.
        x: Images, shape [B, ...].
        batch_size: Images per forward pass; None for all at once.

    Raises:
        UserError: The network does not take such images, or returns something else than logits.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), x)
    chunks = [x] if batch_size is None else torch.split(x, batch_size)
    try:
        outputs = [logits_of(model(chunk.to(parameter.dtype)), len(chunk)) for chunk in chunks]
    except (UserError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # what a network's own checks and layers raise has no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the network does not take images of shape {tuple(x.shape[1:])} ({reason}); give images of the size and "
            "channels it was made for, or another network"
        ) from error
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _loss_scale(device: torch.device) -> float:
    """A power of two that keeps float16 gradients from underflowing; the attack itself is scale-free."""
    half = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
    return _FP16_LOSS_SCALE if half else 1.0

"""What attacks ask of a network: its logits, and the gradient of a loss with respect to the images alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from wdro_train.theory.ground_norm import per_image
from wdro_train.theory.losses import LossFunction
from wdro_train.utils import devices
from wdro_train.utils.blocks import by_blocks
from wdro_train.utils.contract import logits_of
from wdro_train.utils.errors import UserError

# float16 holds 6e-8 to 65504: under this scale gradients of the activations from 1.5e-11 to 16 survive the way back.
_FP16_LOSS_SCALE = 2.0**12


class InputGradient(NamedTuple):
    """J and grad_x J of a batch.

    Attributes:
        logits: Shape [B, m].
        losses: J, shape [B].
        gradient: grad_x J, float32, shape of the images; 0 for an image whose gradient or loss is not finite.
        nonfinite: How many such images there are, int64 scalar.
    """

    logits: Tensor
    losses: Tensor
    gradient: Tensor
    nonfinite: Tensor


def input_gradient(
    model: nn.Module, x: Tensor, y: Tensor, loss: LossFunction, batch_size: int | None = None
) -> InputGradient:
    """Losses and their gradient with respect to the images alone; those of the parameters are not touched.

    One forward and one backward pass.

    Args:
        model: Maps images to logits; call inside `attack_mode`.
        x: Images, shape [B, ...], float32.
        y: Labels, shape [B], or whatever else the loss is told about each image, one row an image.
        loss: Per-image loss. It is called batch by batch, so all it may know of an image is the image's row of `y`.
        batch_size: Images per forward pass; None for all at once.
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
    gradient = None
    if losses.requires_grad:  # a piecewise constant network (quantised, say) has none: its images count as gradient 0
        (gradient,) = torch.autograd.grad(losses.sum() * scale, x, allow_unused=True)
    if gradient is None:
        gradient = torch.zeros_like(x)
    own = torch.empty_like(x)  # to be written to: what autograd returns may be shared or expanded
    gradient, finite = by_blocks(_finite_part, gradient, losses.detach(), scale, own, into=own)
    return InputGradient(logits.detach(), losses.detach(), gradient, (~finite).sum())


def forward(model: nn.Module, x: Tensor, batch_size: int | None = None) -> Tensor:
    """Logits of images, which are cast to the type of the network's parameters on the way in.

    Args:
        model: Maps images to logits.
        x: Images, float32, shape [B, ...].
        batch_size: Images per forward pass; None for all at once.

    Returns:
        Shape [B, m].

    Raises:
        UserError: The network does not take such images, or returns something else than logits.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), x)
    chunks = [x] if batch_size is None else torch.split(x, batch_size)
    try:
        outputs = [logits_of(model(chunk.to(parameter.dtype)), len(chunk)) for chunk in chunks]
    except (UserError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # a network's own checks and layers may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the network does not take images of shape {tuple(x.shape[1:])} ({reason}); give images of the size and "
            "channels it was made for, or another network"
        ) from error
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _finite_part(gradient: Tensor, losses: Tensor, scale: float, into: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients divided by the scale, 0 for images that have none, and which images have one, boolean [B]."""
    flat = gradient.flatten(1)
    finite = torch.maximum(flat.amax(1), -flat.amin(1)).isfinite() & losses.isfinite()
    if scale == 1 and devices.may_look(gradient) and bool(finite.all()):
        return into.copy_(gradient), finite
    # Arithmetic in place of a mask: `isfinite` and `torch.where` on whole images take several times as long on a CPU.
    return torch.nan_to_num(gradient, 0.0, 0.0, 0.0, out=into).mul_(per_image(finite, gradient) / scale), finite


def _loss_scale(device: torch.device) -> float:
    """What the loss is multiplied by for the backward pass: a power of two, so that dividing by it again is exact."""
    half = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
    return _FP16_LOSS_SCALE if half else 1.0

"""What a batch has to be and what a network has to return, the same for training, evaluation, attacks, certificates.

A batch is images in [0, 1] with one integer label each; a network maps the images to one row of logits each. What
means that without doubt in another form is brought into it (a dictionary, further fields, 32-bit labels, rounding at
the ends of [0, 1], an output object with `logits`); anything else is refused with a sentence, because a guess would
change a number that somebody publishes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wdro_train.utils.errors import UserError

_IMAGE_KEYS = ("image", "images", "img", "imgs", "pixel_values", "x")
_LABEL_KEYS = ("label", "labels", "y", "target", "targets")
PIXEL_ROUNDING = 1e-6
"""Pixels this far outside [0, 1] come from resizing, or from undoing a normalisation, in float32, whose spacing below 1
is 6e-8; a wrong scale is off by far more."""
# Sums of probabilities over many classes, rounded to float32 and averaged over an ensemble, stay this close to 1.
_PROBABILITY = 1e-4


class NonFiniteLogitsError(UserError):
    """The network returns NaN or infinite logits where it must not."""


class LabelRange(NamedTuple):
    """Smallest and largest label of a batch."""

    low: int
    high: int


class CheckedBatch(NamedTuple):
    """A batch that is what it has to be.

    Attributes:
        x: Images in [0, 1], floating point of any width, shape [B, ...].
        y: Labels, int64, shape [B].
        labels: Their range, for `check_labels` once the number of classes is known.
    """

    x: Tensor
    y: Tensor
    labels: LabelRange


_CHECKED: ContextVar[tuple[CheckedBatch, list[int | None]] | None] = ContextVar("checked_batch", default=None)


@contextmanager
def already_checked(batch: CheckedBatch) -> Iterator[None]:
    """Inside, `check_batch` answers for this batch without looking at it again, at a transfer to the host each time.

    For whoever hands one batch to several attacks, each of which checks what it is given. Only these very tensors are
    recognised, as long as nobody changes them in place; whatever else comes is looked at. Tensors of inference mode
    do not count their changes, so that of them only another tensor is noticed.

    Args:
        batch: What `check_batch` has returned, unchanged since.
    """
    token = _CHECKED.set((batch, _versions(batch)))
    try:
        yield
    finally:
        _CHECKED.reset(token)


def unpack(batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of what a data loader yields.

    Args:
        batch: (images, labels, ...) as a tuple or list, whose further fields are left out, or a dictionary with
            the images under one of `image`, `images`, `img`, `imgs`, `pixel_values`, `x` and the labels under one of
            `label`, `labels`, `y`, `target`, `targets`.

    Raises:
        UserError: It is neither, or does not tell which field is which.
    """
    if isinstance(batch, Mapping):
        return _field(batch, _IMAGE_KEYS, "images"), _field(batch, _LABEL_KEYS, "labels")
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        return _tensor(batch[0], "images"), _tensor(batch[1], "labels")
    raise UserError(
        f"a batch is {_described(batch)}; yield (images, labels) or a dictionary with the fields image and label"
    )


def images_of(batch: Any) -> Tensor:
    """Images of what a data loader yields, with labels or without.

    Args:
        batch: The images alone, or as for `unpack`, where the labels may be absent.

    Raises:
        UserError: There are no images in it, or it does not tell which field they are.
    """
    if isinstance(batch, Mapping):
        return _field(batch, _IMAGE_KEYS, "images")
    if isinstance(batch, list | tuple) and batch:
        return _tensor(batch[0], "images")
    return _tensor(batch, "images")


def check_images(x: Tensor) -> Tensor:
    """Images in [0, 1]; one transfer to the host.

    Args:
        x: Floating point of any width, shape [B, ...].

    Returns:
        The images; pixels that rounding has put up to 1e-6 outside [0, 1] are clamped.

    Raises:
        UserError: Another type or range, NaN, or no image.
    """
    _check_image_type(x)
    return _clamped(x, *torch.stack([x.amin(), x.amax()]).tolist())


def check_batch(x: Tensor, y: Tensor) -> CheckedBatch:
    """Images in [0, 1] with one integer label each; one transfer to the host.

    Args:
        x: Floating point of any width, shape [B, ...].
        y: Labels of any integer type, shape [B].

    Returns:
        The batch with clamped pixels (see `check_images`) and int64 labels.

    Raises:
        UserError: Another type, shape or range.
    """
    known = _CHECKED.get()
    if known is not None and known[0].x is x and known[0].y is y and _versions(known[0]) == known[1]:
        return known[0]
    _check_image_type(x)
    if y.dim() == 2 and y.shape[0] == x.shape[0] and y.shape[1] > 1:
        raise UserError(
            f"labels have shape {tuple(y.shape)}, like one-hot rows; give one integer per image, such as y.argmax(1)"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape != x.shape[:1]:
        raise UserError(f"labels have shape {tuple(y.shape)} and type {y.dtype}; give one integer per image")
    y = y.long()
    # Labels are compared as what they are: in the images' type 257 would be 256 of bfloat16.
    ends = torch.stack([x.amin().double(), x.amax().double(), y.amin().double(), y.amax().double()]).tolist()
    return CheckedBatch(_clamped(x, *ends[:2]), y, LabelRange(int(ends[2]), int(ends[3])))


def check_labels(labels: LabelRange, num_classes: int) -> None:
    """Refuse labels the network has no output for.

    Args:
        labels: The range of the labels of a batch.
        num_classes: Number of outputs of the network.

    Raises:
        UserError: A label outside 0..num_classes-1.
    """
    if labels.low < 0 or labels.high >= num_classes:
        raise UserError(
            f"labels range over [{labels.low}, {labels.high}] but the network has {num_classes} outputs; "
            f"use labels 0..{num_classes - 1} or a network with more classes"
        )


def logits_of(output: Any, images: int) -> Tensor:
    """The logits in what a network returns.

    Args:
        output: A tensor; or an object or dictionary with `logits`, such as outputs of transformers and the training
            outputs of networks with auxiliary classifiers; or a tuple in which only the first element can be logits.
        images: Number of images it was given.

    Returns:
        Floating point, shape [images, m], m >= 2.

    Raises:
        UserError: It does not tell which part are the logits, or these have another type or shape.
    """
    logits = _unwrapped(output, images)
    if not isinstance(logits, Tensor):
        raise UserError(f"the network returns {_described(output)}; return logits, one tensor [images, classes]")
    shape = tuple(logits.shape)
    if not logits.is_floating_point():
        raise UserError(f"the network returns {logits.dtype}, like class numbers; return logits in floating point")
    if shape in ((images,), (images, 1)):
        raise UserError(
            f"the network returns one number an image (shape {shape}); return a logit for each of the two classes, "
            "such as torch.stack([torch.zeros_like(z), z], 1) for z that went into a sigmoid"
        )
    if len(shape) != 2 or shape[0] != images:
        raise UserError(f"the network returns shape {shape} for {images} images; return logits [images, classes]")
    return logits


def look_like_probabilities(logits: Tensor) -> Tensor:
    """Whether every row lies in [0, 1] and sums to 1 up to rounding, boolean scalar.

    Args:
        logits: Shape [B, m].
    """
    wide = logits.detach().double()
    tolerance = max(_PROBABILITY, 4 * torch.finfo(logits.dtype).eps)
    inside = (wide >= -tolerance) & (wide <= 1 + tolerance)
    return inside.all() & ((wide.sum(1) - 1).abs() <= tolerance).all()


def nonfinite_weights(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer that holds NaN or infinity, or None.

    Args:
        model: The network; one look at every weight.
    """
    state = [*model.named_parameters(), *model.named_buffers()]
    return next((name for name, value in state if value.is_floating_point() and not value.isfinite().all()), None)


def _versions(batch: CheckedBatch) -> list[int | None]:
    """How often images and labels were changed in place; None for tensors of inference mode, which do not count it."""
    return [None if tensor.is_inference() else tensor._version for tensor in (batch.x, batch.y)]


def _check_image_type(x: Tensor) -> None:
    if x.dtype == torch.uint8:
        raise UserError("images are torch.uint8; divide them by 255, to floating point in [0, 1]")
    if not x.is_floating_point():
        raise UserError(f"images are {x.dtype}; scale them to floating point in [0, 1]")
    if x.dim() < 2:
        raise UserError(f"images have shape {tuple(x.shape)}; give a batch [B, C, H, W]")
    if x.numel() == 0:
        raise UserError("the batch is empty; give at least one image")


def _clamped(x: Tensor, low: float, high: float) -> Tensor:
    """The images with their rounding outside [0, 1] taken off."""
    if low != low:
        raise UserError(f"images range over [{low:g}, {high:g}]: they have NaN pixels; repair them or leave them out")
    if low < -PIXEL_ROUNDING or high > 1 + PIXEL_ROUNDING:
        raise UserError(
            f"images range over [{low:g}, {high:g}]; scale them to [0, 1] and keep the normalisation "
            "inside the model (wdro_train.models.Normalize)"
        )
    return x if low >= 0 and high <= 1 else x.clamp(0, 1)


def _field(batch: Mapping[Any, Any], keys: Sequence[str], what: str) -> Tensor:
    found = [key for key in keys if key in batch]
    if len(found) != 1:
        there = ", ".join(map(str, batch)) or "nothing"
        told = f"{' and '.join(found)} for its {what}" if found else f"no {what}"
        raise UserError(f"a batch has {told} (its fields: {there}); name exactly one of them {keys[0]}")
    return _tensor(batch[found[0]], what)


def _tensor(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise UserError(f"the {what} of a batch are {_described(value)}; give one tensor")
    return value


def _unwrapped(output: Any, images: int) -> Any:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, list | tuple):
        likely = [k for k, part in enumerate(output) if _can_be_logits(part, images)]
        if likely == [0]:
            return output[0]
    return None


def _can_be_logits(part: Any, images: int) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point() and part.dim() == 2 and part.shape[0] == images


def _described(value: Any) -> str:
    """What something is, for an error."""
    kind = type(value).__name__
    if isinstance(value, Tensor):
        return f"one tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {kind} with the fields {', '.join(map(str, value)) or 'none'}"
    if isinstance(value, list | tuple):
        return f"a {kind} of {len(value)} ({', '.join(_named(part) for part in value[:4])})"
    return f"a {kind}"


def _named(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

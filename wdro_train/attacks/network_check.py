"""A look at a network before an attack or a metric relies on it: what it returns are logits, one for every label."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.theory.losses import LossFunction
from wdro_train.utils.contract import (
    LabelRange,
    NonFiniteLogitsError,
    check_batch,
    check_images,
    check_labels,
    look_like_probabilities,
    nonfinite_weights,
)
from wdro_train.utils.errors import UserError

PROBED_IMAGES = 16
"""Images of a look at a network. Two scores of one image may add up to 1 by chance, but not those of 16 images."""


def check_network(model: nn.Module, x: Tensor, y: Tensor | None = None) -> int:
    """Refuse a network, or a batch, that no attack could work with: one look at a real batch before any work is done.

    Modes, buffers and random numbers are as before afterwards.

    Args:
        model: Should map images in [0, 1] to logits.
        x: Images, shape [B, ...], on the network's device.
        y: Labels, shape [B]; None where there are none.

    Returns:
        The number of classes that the network has an output for.

    Raises:
        UserError: See `wdro_train.utils.contract` and `check_logits`; or the network does not take such images.
    """
    labels = None
    if y is None:
        x = check_images(x)
    else:
        x, _, labels = check_batch(x, y)
    with attack_mode(model), torch.no_grad(), _same_random_numbers(x.device):
        x = x[:PROBED_IMAGES].clone().float()
        logits = forward(model, x)
        check_logits(model, x, logits, labels)
    return logits.shape[1]


def check_logits(model: nn.Module, x: Tensor, logits: Tensor, labels: LabelRange | None = None) -> None:
    """Refuse logits that no attack or metric could make sense of: not finite, too few, or probabilities.

    Costs one transfer to the host. Where all rows look like probabilities the network is asked about noise images as
    well, since the logits of a small batch may add up to 1 by chance.

    Args:
        model: The network; call inside `attack_mode`.
        x: The images it was given, shape [B, ...].
        logits: What it returned, shape [B, m].
        labels: Range of the images' labels; None where there are none.

    Raises:
        NonFiniteLogitsError: NaN or infinite logits, which would count as mistakes of the network.
        UserError: A label without output; probabilities, whose gradients vanish in floating point where it is sure.
    """
    if labels is not None:
        check_labels(labels, logits.shape[1])
    bad, suspicious = torch.stack([(~logits.isfinite()).any(1).sum(), look_like_probabilities(logits).long()]).tolist()
    if bad:
        broken = nonfinite_weights(model)
        if broken is not None:
            layer = broken.rpartition(".")[0] or "the network itself"
            raise NonFiniteLogitsError(
                f"the weights of layer {layer} ({broken}) are not finite; train again or load another checkpoint"
            )
        raise NonFiniteLogitsError(
            f"the network returns NaN or infinite logits on {bad} of {len(logits)} images; repair it, or compute it in "
            "float32"
        )
    if suspicious:
        noise = torch.rand(PROBED_IMAGES, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
        with torch.no_grad(), _same_random_numbers(x.device):
            elsewhere = forward(model, noise)
        if look_like_probabilities(elsewhere):
            raise UserError("the network returns probabilities, not logits; return what goes into its softmax")


def checked_loss(loss: LossFunction, labels: LabelRange) -> LossFunction:
    """The loss, but for a check that the network has an output for every label.

    On a GPU a label without output would end the process inside the loss.

    Args:
        loss: Per-image loss.
        labels: Range of the labels it will be given.
    """

    def checked(logits: Tensor, y: Tensor) -> Tensor:
        check_labels(labels, logits.shape[1])
        return loss(logits, y)

    return checked


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Whatever a random network draws inside the block, the generators afterwards stand where they stood before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield

"""What every attack shares: the protocol, its result, a look at the network, and the input gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import LossFunction
from wdro_train.utils.contract import (
    LabelRange,
    NonFiniteLogitsError,
    check_batch,
    check_images,
    check_labels,
    logits_of,
    look_like_probabilities,
    nonfinite_weights,
)
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError

BatchNormMode = Literal["eval", "train"]
_FP16_LOSS_SCALE = 2.0**12
_PROBES = 16  # images of a look at a network: enough that nothing holds for all of them by chance


@dataclass(frozen=True)
class AttackResult:
    """A perturbed batch and what it cost.

    Attributes:
        x_adv: Perturbed images in [0, 1], float32, shape [B, C, H, W].
        distances: ||x'_i - x_i||_s, float64, shape [B].
        upsilon: (E ||grad J||_*^q)^(1/q) at the attack's first iterate, over the attack's scope; float64 scalar.
        dual_norms: ||grad J||_* at the first iterate, float64, shape [B]. With W-PGD's keep="cheapest" images that
            are misclassified there count as gradient 0, in Upsilon too: the attack has nothing to do on them.
        losses: J at the first iterate, shape [B].
        logits: Logits at the first iterate (the clean images unless the start is random), shape [B, m].
        zero_gradients: Number of images whose first gradient vanished, int64 scalar.
        nonfinite_gradients: Number of (image, step) pairs whose gradient was not finite, int64 scalar.
        adv_logits: Logits at x_adv, where the attack had computed them.
        best_mean_loss: Largest mean loss over the iterates, where the attack had computed all of them.
        importance: Weight of each image in the training loss, shape [B]; None for equal ones.
        terms: Further scalars for the log.
    """

    x_adv: Tensor
    distances: Tensor
    upsilon: Tensor
    dual_norms: Tensor
    losses: Tensor
    logits: Tensor
    zero_gradients: Tensor
    nonfinite_gradients: Tensor
    adv_logits: Tensor | None = None
    best_mean_loss: Tensor | None = None
    importance: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)


class Attack(Protocol):
    """A map from a batch to its worst case inside a Wasserstein ball.

    Attributes:
        ball: The threat. A radius warm-up assigns it anew every epoch, so what is kept elsewhere must follow it.
    """

    ball: WassersteinBall

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        weight: Tensor | None = None,
        reducer: Reducer | None = None,
        generator: torch.Generator | None = None,
    ) -> AttackResult:
        """Perturb a batch.

        Args:
            model: Maps images in [0, 1] to logits.
            x: Images in [0, 1], shape [B, C, H, W].
            y: Labels, shape [B].
            weight: Shape [B]; 0 for padding, which then counts in no mean.
            reducer: Joins the ranks that share the global batch; None for one process.
            generator: Source of random starts, seeded alike on all ranks; None for the default one.
        """
        ...


@runtime_checkable
class Stateful(Protocol):
    """What learns from batch to batch, and belongs into checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        ...


def check_logits(model: nn.Module, x: Tensor, logits: Tensor, labels: LabelRange | None = None) -> None:
    """Refuse what a network says about its images where no attack or metric could make sense of it.

    Costs one transfer to the host; the network is only asked again when its answers look like probabilities, since
    two scores of one image may add up to 1 by chance, but not everywhere.

    Args:
        model: The network; call inside `attack_mode`.
        x: The images it was given, shape [B, ...].
        logits: What it said, shape [B, m].
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
        noise = torch.rand(_PROBES, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
        with torch.no_grad(), _same_random_numbers(x.device):
            elsewhere = forward(model, noise)
        if look_like_probabilities(elsewhere):
            raise UserError("the network returns probabilities, not logits; return what goes into its softmax")


def check_network(model: nn.Module, x: Tensor, y: Tensor | None = None) -> int:
    """Look at what a network says about the first images of a real batch, before any work is done.

    Modes, buffers and random numbers are afterwards as before.

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
        x = x[:_PROBES].clone().float()
        logits = forward(model, x)
        check_logits(model, x, logits, labels)
    return logits.shape[1]


@contextmanager
def _same_random_numbers(device: torch.device) -> Iterator[None]:
    """Random networks draw inside; afterwards the generators stand where they stood."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def checked_loss(loss: LossFunction, labels: LabelRange) -> LossFunction:
    """The loss behind a check that the network has an output for every label (on a GPU the loss would abort)."""

    def checked(logits: Tensor, y: Tensor) -> Tensor:
        check_labels(labels, logits.shape[1])
        return loss(logits, y)

    return checked


def resolve_batch_norm(mode: str) -> BatchNormMode:
    """The mode the model runs in during an attack.

    Raises:
        UserError: Neither `eval` nor `train`.
    """
    if mode in get_args(BatchNormMode):
        return cast(BatchNormMode, mode)
    raise UserError(f"attack.batch_norm={mode!r} is unknown; choose eval or train")


@contextmanager
def attack_mode(model: nn.Module, batch_norm: BatchNormMode = "eval") -> Iterator[None]:
    """The model in the mode an attack runs in; afterwards all flags and buffers are as before, per submodule.

    Leaves inference mode and turns gradients on. `eval` freezes BatchNorm and dropout; `train` keeps every
    submodule's own flag, and undoes what the forward passes did to its buffers. The autocast weight cache is
    off inside, since casts cached under inference mode cannot be differentiated.
    """
    flags = {module: module.training for module in model.modules()}
    cached = torch.is_autocast_cache_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        buffers = [(b, b.clone()) for b in model.buffers()] if batch_norm == "train" else []
        try:
            torch.set_autocast_cache_enabled(False)
            if batch_norm == "eval":
                model.eval()
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
            for module, training in flags.items():
                module.training = training
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


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

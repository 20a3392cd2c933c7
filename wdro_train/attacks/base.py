"""What an attack is: a map from a batch of images to a perturbed batch, and what it returns beside the images.

To add an attack, write a class with a `ball` and the call of `Attack`, in a file of its own, and export it in
`wdro_train.attacks`. Everything an attack does to the network goes through `wdro_train.attacks.gradient`, inside
`wdro_train.attacks.mode.batch_under_attack`, which leave parameters, their gradients, buffers and modes as they were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError


class Attacked:
    """The network and the labels that an attack was given, so that its result can be looked at afterwards.

    Args:
        network: Maps images in [0, 1] to logits.
        labels: Shape [B].
    """

    def __init__(self, network: nn.Module, labels: Tensor) -> None:
        self.network, self.labels = network, labels.clone().long()
        self._versions = self._present_versions()

    def logits(self, x: Tensor) -> Tensor:
        """What the network answers to the batch, in evaluation mode, by one forward pass, shape [B, m].

        Raises:
            UserError: Its weights or buffers have changed since the attack.
        """
        if self._present_versions() != self._versions:
            raise UserError(
                "the network has changed since the attack, so that whether it succeeded cannot be said any more; ask "
                "for success before the network is trained further"
            )
        with attack_mode(self.network), torch.no_grad():
            return forward(self.network, x)

    def _present_versions(self) -> list[int | None]:
        """How often each weight and buffer was changed in place; tensors of inference mode do not count it."""
        state = (*self.network.parameters(), *self.network.buffers())
        return [None if tensor.is_inference() else tensor._version for tensor in state]


@dataclass(frozen=True)
class AttackResult:
    """A perturbed batch and what it cost.

    Attributes:
        x_adv: Perturbed images in [0, 1], float32, shape [B, C, H, W].
        distances: ||x'_i - x_i||_s, float64, shape [B].
        upsilon: (E ||grad J||_*^q)^(1/q) at the attack's first iterate, over the attack's scope; float64 scalar.
        dual_norms: ||grad J||_* at the first iterate, float64, shape [B]. With W-PGD's keep="cheapest" or "nearest",
            images that are misclassified at the first iterate count as gradient 0, in Upsilon too, since the attack
            leaves them.
        losses: J at the first iterate, shape [B].
        logits: Logits at the first iterate (the clean images unless the start is random), shape [B, m].
        zero_gradients: Number of images whose first gradient vanished, int64 scalar.
        nonfinite_gradients: Number of (image, step) pairs whose gradient was not finite, int64 scalar.
        adv_logits: Logits at x_adv, where the attack had computed them.
        best_mean_loss: Largest mean loss over the iterates, where the attack had computed all of them.
        importance: Weight of each image in the training loss, shape [B]; None for equal ones.
        terms: Further scalars for the log.
        attacked: The network and the labels, for `success`.
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
    attacked: Attacked | None = field(default=None, repr=False, compare=False)

    @property
    def success(self) -> Tensor:
        """Which images the network misclassifies at x_adv, boolean, shape [B].

        A tie of the largest logits is a mistake, and images that were misclassified before are among them. An attack
        that has not looked at its last images leaves one forward pass to whoever asks.

        Raises:
            UserError: The attack does not say what it was given, or the network has changed since.
        """
        if self.attacked is None:
            raise UserError(
                "this attack does not say which labels it was given; return AttackResult(..., "
                "attacked=Attacked(model, y)) in it, or compare model(result.x_adv) with the labels"
            )
        logits = self.attacked.logits(self.x_adv) if self.adv_logits is None else self.adv_logits
        return ~correct(logits, self.attacked.labels)


class Attack(Protocol):
    """A map from a batch to its worst case inside a Wasserstein ball.

    What it returns is a function of the images of the global batch, whatever their order and their distribution over
    ranks; every rank takes part in every collective, also with images that are misclassified to begin with.

    Attributes:
        ball: The threat. A warm-up of the radius assigns a new ball every epoch, so whatever an attack derives from
            the ball must be derived in the call.
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

"""What certified training has in common: a bound on the loss around each image, mixed with the clean loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import inf
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.certificates.margin_bounds import DifferentiableBounds, smallest
from wdro_train.certificates.reading import network_of
from wdro_train.objectives.base import ObjectiveResult
from wdro_train.objectives.training_radii import RadiusOfImage, TrainingRadii
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import ce, margin
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import record_passes

# How far, in units of the largest logit, bounds at radius 0 may be from the logits: bfloat16 weights round to 0.004.
_AGREEMENT = 0.02
Differences = Callable[[Tensor], Tensor]
"""From radii [B] to lower bounds of f_y - f_j over the balls around a batch, [B, m], 0 for j = y."""


class CertifiedObjective(ABC):
    """Minimise kappa CE(f(x), y) + (1 - kappa) CE(z, y), with z_j = -(lower bound of f_y - f_j) over a ball around x.

    Each kind of bound is a class of its own. CE(z, y) is at least the loss of every image of the ball, so no attack is
    needed, and what is minimised is what is certified (theory, section 11). Bounds are computed in the weights' own
    precision, also where the network's forward pass is not.

    A warm-up (`wdro_train.training.callbacks.GradualWarmup`) lets the radii grow from 0 and the weight of the clean
    loss fall from 1. Without one, bounds of a network that was not trained for them are loose by orders of magnitude,
    and the network may settle at one class for all images.

    Args:
        p: Wasserstein order in [1, inf].
        norm: Ground norm, inf.
        delta: Radius.
        kappa: Weight of the clean loss, in [0, 1].
        radius: How far each image is to be certified; `RadiusOfImage` by default.
    """

    needs_adversary = False

    def __init__(
        self, *, p: float, norm: float, delta: float, kappa: float = 0.5, radius: TrainingRadii | None = None
    ) -> None:
        if not 0 <= kappa <= 1:
            raise UserError(f"objective.kappa={kappa} is not a weight; choose kappa between 0 and 1")
        self.ball = WassersteinBall(p, norm, delta)
        require_l_inf(self.ball.norm)
        self.kappa = float(kappa)
        self.radius: TrainingRadii = radius if radius is not None else RadiusOfImage()
        self._share = 1.0
        self._bounds = self.bounds()

    @abstractmethod
    def bounds(self) -> LiveBounds:
        """The kind of bound that is trained on."""
        ...

    def differences(self, model: nn.Module, x: Tensor, y: Tensor) -> Differences:
        """The bounds of a batch by its radii.

        Args:
            model: The network, in training mode.
            x: Images in [0, 1], float32, shape [B, ...].
            y: Labels, shape [B].
        """
        return self._bounds.of(model, x, y)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        x_adv: Tensor,
        y: Tensor,
        *,
        importance: Tensor | None = None,
        reducer: Reducer | None = None,
    ) -> ObjectiveResult:
        """Clean loss and bound on x; see `Objective`."""
        logits = model(x)
        network = network_of(model)
        with torch.autocast(x.device.type, enabled=False):
            differences = self.differences(network, x.float(), y)

            def margins_at(radii: Tensor) -> Tensor:
                return smallest(differences(radii), y)

            radii = self.radius(self.ball, x, margin(logits.detach(), y), margins_at, reducer)
            worst = -differences(radii)
        kappa = 1 - self._share * (1 - self.kappa)
        clean, bound = ce(logits, y).mean(), ce(worst, y).mean()
        loss = bound if kappa == 0 else kappa * clean + (1 - kappa) * bound
        terms = {
            "ce": clean.detach(),
            "bound": bound.detach(),
            "radius": radii.mean().float(),
            "bounded": (margin(worst.detach(), y) > 0).float().mean(),
        }
        return ObjectiveResult(loss, logits, None, terms)

    def check_network(self, model: nn.Module, x: Tensor) -> None:
        """Refuse a network that has no bounds, or that computes something else than what it was read as.

        At radius 0 the bounds are the differences of the logits themselves. See `ChecksNetwork`.

        Args:
            model: The network.
            x: Some images.
        """
        x = x.float()
        with attack_mode(model), torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            logits = forward(model, x).float()
            y = logits.argmax(1)
            bounds = self.differences(model, x, y)(x.new_zeros(len(x)))
        gap = (bounds - (logits.gather(1, y[:, None]) - logits)).abs().amax()
        if not gap <= _AGREEMENT * logits.abs().amax():
            raise UserError(
                f"the network's operations, one after another, miss its logits by {float(gap):g}; train a network "
                "without hooks that change what it computes"
            )

    def warm_up(self, share: float) -> None:
        """Ask for this share of the radii, and give the bound this share of its weight; see `WarmsUp`."""
        self._share = share
        self.radius.warm_up(share)

    def state_dict(self) -> dict[str, Any]:
        """What the rule for the radii has learnt; see `Stateful`."""
        return self.radius.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what a checkpoint has kept."""
        self.radius.load_state_dict(state_dict)


Read = TypeVar("Read")


class ReadOnce(Generic[Read]):
    """What was read from the network that was seen last; a copy begins with nothing.

    So the copy of an objective trains the copy of a network, and another process reads for itself.

    Args:
        read: Reads a network; what it returns must not hold copies of its weights.
    """

    def __init__(self, read: Callable[[nn.Module], Read]) -> None:
        self._read = read
        self._found: tuple[nn.Module, Read] | None = None

    def of(self, model: nn.Module) -> Read:
        """What was read from this network, now or before.

        Args:
            model: The network.
        """
        if self._found is None or self._found[0] is not model:
            self._found = model, self._read(model)
        return self._found[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnce[Read]:
        """One that has read nothing."""
        return ReadOnce(self._read)

    def __reduce__(self) -> tuple[Any, ...]:
        """How to make one that has read nothing."""
        return ReadOnce, (self._read,)


class LiveBounds:
    """Bounds of a network on its present weights, which is read once.

    Args:
        read: Reads a network; what it returns must not hold copies of its weights.
        cost: From the number of classes to how many forward passes a bound is worth, for `PassCounter`.
    """

    def __init__(self, read: Callable[[nn.Module], DifferentiableBounds], cost: Callable[[int], int]) -> None:
        self._networks, self._cost = ReadOnce(read), cost

    def of(self, model: nn.Module, x: Tensor, y: Tensor) -> Differences:
        """The bounds of a batch by its radii.

        Args:
            model: The network, whose mode does not matter and stays.
            x: Images in [0, 1], shape [B, ...].
            y: Labels, shape [B].
        """
        with attack_mode(model):
            bounds = self._networks.of(model)
        images = x.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype))

        def differences(radii: Tensor) -> Tensor:
            found = bounds.differences(images, y, radii.to(images))
            record_passes(model, found, self._cost(found.shape[1]) * len(x))
            return found

        return differences


def require_l_inf(norm: float) -> None:
    """Refuse another ground norm where radii are those of boxes.

    Args:
        norm: Should be inf.

    Raises:
        UserError: It is not.
    """
    if norm != inf:
        raise UserError(
            f"interval bounds are for boxes, not for attack.norm={norm:g}; choose attack.norm=inf or another method"
        )

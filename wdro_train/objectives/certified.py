"""What certified training has in common: a bound on the loss around each image, mixed with the clean loss."""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from wdro_train.objectives.base import ObjectiveResult
from wdro_train.objectives.training_radii import RadiusOfImage, TrainingRadii
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import ce, margin
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError

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
        norm: Ground norm.
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
        self.kappa = float(kappa)
        self.radius: TrainingRadii = radius if radius is not None else RadiusOfImage()
        self._share = 1.0

    @abstractmethod
    def differences(self, model: nn.Module, x: Tensor, y: Tensor) -> Differences:
        """The bounds of a batch by its radii.

        Args:
            model: The network, in training mode.
            x: Images in [0, 1], float32, shape [B, ...].
            y: Labels, shape [B].
        """
        ...

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
        # What is bounded is read operation by operation, so the network itself, not the module that trains it.
        network = getattr(model, "model", model)
        with torch.autocast(x.device.type, enabled=False):
            differences = self.differences(network, x.float(), y)

            def margins_at(radii: Tensor) -> Tensor:
                return differences(radii).scatter(1, y[:, None], torch.inf).amin(1)

            radii = self.radius(self.ball, x, margin(logits.detach(), y), margins_at, reducer)
            worst = -differences(radii)
        kappa = 1 - self._share * (1 - self.kappa)
        clean, bound = ce(logits, y).mean(), ce(worst, y).mean()
        loss = bound if kappa == 0 else kappa * clean + (1 - kappa) * bound
        terms = {
            "ce": clean.detach(),
            "bound": bound.detach(),
            "radius": radii.mean().float(),
            "certified": (margin(worst.detach(), y) > 0).float().mean(),
        }
        return ObjectiveResult(loss, logits, None, terms)

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
    """What was read from a network, for as long as the network is there; a copy begins with nothing.

    Args:
        read: Reads a network; what it returns must not hold copies of its weights.
    """

    def __init__(self, read: Callable[[nn.Module], Read]) -> None:
        self._read = read
        self._found: tuple[weakref.ref[nn.Module], Read] | None = None

    def of(self, model: nn.Module) -> Read:
        """What was read from this network, now or before.

        Args:
            model: The network.
        """
        if self._found is None or self._found[0]() is not model:
            self._found = weakref.ref(model), self._read(model)
        return self._found[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnce[Read]:
        """One that has read nothing: the copy of an objective trains a copy of the network."""
        return ReadOnce(copy.copy(self._read))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process reads for itself, too."""
        return ReadOnce, (self._read,)

"""Adversarial weight perturbation (Wu, Xia, Wang 2020): flat minima of the robust loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from wdro_train.attacks.mode import attack_mode
from wdro_train.training.module import RobustClassifier
from wdro_train.utils.errors import UserError


class AdversarialWeightPerturbation(L.Callback):
    """Takes the gradient of the loss at weights that are moved up the loss, and applies it to the weights themselves.

    Each weight matrix w is moved by gamma ||w|| g / ||g||, with g the gradient of the loss with respect to it, as in
    Wu, Xia, Wang 2020, "Adversarial weight perturbation helps robust generalization". This costs one more forward and
    backward pass a step. BatchNorm statistics see the batch once.

    Args:
        gamma: Relative size of the perturbation, >= 0. The default is that of the paper's experiments with TRADES.
        start_epoch: First epoch with it.
    """

    def __init__(self, gamma: float = 0.005, start_epoch: int = 0) -> None:
        if not gamma >= 0:
            raise UserError(f"gamma={gamma} is not a size; choose gamma >= 0")
        self.gamma = gamma
        self.start_epoch = start_epoch
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Attach to the module.

        Raises:
            UserError: Not a `RobustClassifier`.
        """
        if not isinstance(pl_module, RobustClassifier):
            raise UserError(f"{type(pl_module).__name__} has no weights to perturb; use RobustClassifier")
        pl_module.weight_adversary = self
        self._trainer = trainer

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Detach."""
        assert isinstance(pl_module, RobustClassifier)
        pl_module.weight_adversary = None

    def perturb(self, module: RobustClassifier, loss: Callable[[], Tensor]) -> None:
        """Move the weight matrices up `loss` until `on_after_backward`."""
        if self._trainer.current_epoch < self.start_epoch or self.gamma == 0:
            return
        weights = [p for p in module.model.parameters() if p.requires_grad and p.dim() > 1]
        if not weights:
            raise UserError("every weight matrix is frozen, so none can be perturbed; freeze less or leave out awp")
        with attack_mode(module.model, "train"):
            gradients = torch.autograd.grad(loss(), weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                mean = self._trainer.strategy.reduce(gradient, reduce_op="mean")
                assert isinstance(mean, Tensor)
                size = mean.norm()
                step = self.gamma * weight.norm() / torch.where(size > 0, size, 1.0)
                self._before.append((weight, weight.detach().clone()))
                weight.add_(mean * step)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the weights back."""
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Put the weights back before a checkpoint is written of them."""
        self._restore()

    def _restore(self) -> None:
        with torch.no_grad():
            for weight, before in self._before:
                weight.copy_(before)
        self._before = []

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep: weights are saved between steps."""
        return {}

"""`RobustClassifier`: the LightningModule around any classifier of images in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wdro_train.objectives import Objective, Standard, unlearning
from wdro_train.training.adversarial_module import AdversarialModule, AttackedBatch
from wdro_train.training.divergence import refuse_nonfinite
from wdro_train.training.epoch_metrics import TrainingMetrics
from wdro_train.training.optimization import make_optimization
from wdro_train.training.resuming import TakenUp, take_up
from wdro_train.utils.contract import logits_of
from wdro_train.utils.distributed import default_reducer
from wdro_train.utils.learnt import Stateful

CONFIG_KEY = "wdro_train_config"
"""Key of a checkpoint under which the configuration of the run is kept."""
OBJECTIVE_KEY = "wdro_train_objective"
"""Key of a checkpoint under which is kept what the objective has learnt."""


class WeightAdversary(Protocol):
    """Moves the weights up the loss before its gradient is taken, and back afterwards."""

    def perturb(self, module: RobustClassifier, loss: Callable[[], Tensor]) -> None:
        """Perturb the weights."""
        ...


class RobustClassifier(AdversarialModule):
    """Trains a classifier on an objective; with an adversary attached, on and against its images.

    Args:
        model: Maps images in [0, 1] to logits (normalisation is its first layer).
        objective: What is minimised; standard training by default.
        optimizer: Takes the parameters; Adam(1e-3) by default.
        scheduler: Takes the optimizer, steps once an epoch; one that also takes `total_steps` (OneCycleLR) is given
            the run's number of steps, unless it has one, and steps after each. None by default.
        config: Plain data (dicts, lists, numbers, strings) to keep in checkpoints: for `evaluate.py`, and to find out
            what still holds when training is resumed.

    Attributes:
        attacker: Finds the images to train on, if the objective asks for them; None without an adversary.
        judge: Looks at validation and test batches.
        weight_adversary: Perturbs the weights before the gradient is taken; None for none.
        inspector: Checks every batch once, and the network with the first one.
        taken_up: The checkpoint that is being resumed, from when it is read until the optimizer is made.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: Objective | None = None,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective: Objective = objective if objective is not None else Standard()
        self.make_optimizer = optimizer if optimizer is not None else partial(torch.optim.Adam, lr=1e-3)
        self.make_scheduler = scheduler
        self.config = config
        self.weight_adversary: WeightAdversary | None = None
        self.taken_up: TakenUp | None = None
        self.training_metrics = TrainingMetrics()

    @property
    def trained_network(self) -> nn.Module:
        """The network, for whoever reads it operation by operation (`wdro_train.certificates.reading.network_of`)."""
        return self.model

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, m] of images [B, C, H, W] in [0, 1]."""
        return logits_of(self.model(x.to(self.dtype)), len(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Attack the batch if the objective asks for it, and evaluate the objective."""
        here = self.inspector.receive(self, batch, batch_idx, self.trainer)
        clean = AttackedBatch(here, here.x, None, {})
        found = self.attack_received(here) if self.objective.needs_adversary else clean
        evaluate = partial(
            self.objective, self, here.x, found.x_adv, here.y, importance=found.importance, reducer=default_reducer()
        )
        if self.weight_adversary is not None:
            with unlearning(self.objective):
                self.weight_adversary.perturb(self, lambda: evaluate().loss)
        result = evaluate()
        refuse_nonfinite(result.loss, self.trainer, batch_idx)
        self.log("train/loss_step", result.loss.detach(), prog_bar=True, sync_dist=True)
        self.training_metrics.update(result, here, found.terms)
        return result.loss

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch."""
        for key, value in self.training_metrics.take().items():
            self.log(key, value)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the scheduler if there is one; in a resumed run with the checkpoint's buffers to come."""
        taken_up, self.taken_up = self.taken_up, None
        return make_optimization(self.parameters(), self.make_optimizer, self.make_scheduler, self._trainer, taken_up)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration beside the weights, as plain data, and what the objective has learnt."""
        if self.config is not None:
            checkpoint[CONFIG_KEY] = self.config
        if isinstance(self.objective, Stateful):
            checkpoint[OBJECTIVE_KEY] = self.objective.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Before training is resumed: let go of what does not hold under the present configuration, and say so.

        Raises:
            UserError: The checkpoint cannot go on under this configuration.
        """
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.taken_up = take_up(checkpoint, checkpoint.get(CONFIG_KEY), self.config, self.trainer)
            kept = OBJECTIVE_KEY in checkpoint and self.taken_up.resumption.measures_the_same
            if kept and isinstance(self.objective, Stateful):  # what was learnt of another threat is worth nothing
                self.objective.load_state_dict(checkpoint[OBJECTIVE_KEY])

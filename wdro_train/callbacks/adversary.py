"""`DistributionalAdversary`: generates the Q_delta batch for a `RobustClassifier`, on any number of ranks."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import islice
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wdro_train import moments
from wdro_train.attacks import WFGSM, WPGD, Attack, AttackResult, Pool
from wdro_train.attacks.base import forward
from wdro_train.data.padding import batch_weight, only_loader
from wdro_train.distributed import LocalReducer, Reducer, default_reducer
from wdro_train.errors import UserError
from wdro_train.module import Evidence, RobustClassifier
from wdro_train.sensitivity import RunningScope, WholeSetScope
from wdro_train.threat import WassersteinBall

_STAGES = {RunningStage.TRAINING: 0, RunningStage.VALIDATING: 1, RunningStage.TESTING: 2}


class DistributionalAdversary(L.Callback):
    """Attacks training batches, and judges validation and test batches.

    In training the module calls `perturb` when its objective asks for adversarial images. In validation and
    test `judge` runs two attacks: `first_order` (W-FGSM, whose images are Q_delta: bounds and ratios), and
    `val_attack` (`adv_acc`, `ratio`). With `whole_set=True` one extra forward and backward pass over the set
    comes first, so that Upsilon, Q_delta and the bounds are those of the whole set. `val_attack` treats every
    global batch as a distribution of its own (p = inf: no difference).

    Random starts depend on seed, epoch, batch and the image's place in the global batch only, so neither the
    number of ranks nor an interruption changes them.

    Args:
        attack: The training attack.
        val_attack: The validation attack; by default 10 steps of W-PGD with ReDLR and 10 with CE, of which the
            cheapest flips are kept.
        first_order: W-FGSM for the bounds; by default with ReDLR.
        whole_set: Take Upsilon of the bounds over the whole set; False: over each global batch.
        seed: Seeds the random starts.
    """

    def __init__(
        self,
        attack: Attack,
        *,
        val_attack: Attack | None = None,
        first_order: WFGSM | None = None,
        whole_set: bool = True,
        seed: int = 0,
    ) -> None:
        ball = attack.ball
        threat: dict[str, Any] = {"p": ball.p, "norm": ball.norm, "delta": ball.delta}
        self.attack = attack
        self.val_attack: Attack = val_attack or Pool(
            [WPGD(**threat, loss=loss, steps=10, keep="cheapest") for loss in ("redlr", "ce")]
        )
        self.first_order = first_order or WFGSM(**threat, loss="redlr")
        self.whole_set = whole_set
        self.seed = seed
        self._reducer: Reducer = LocalReducer()
        self._trainer: L.Trainer | None = None
        self._q_attack = self.first_order

    @property
    def ball(self) -> WassersteinBall:
        """The threat of the training attack."""
        return self.attack.ball

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Attach to the module.

        Raises:
            UserError: A module or a strategy it cannot serve.
        """
        if not isinstance(pl_module, RobustClassifier):
            raise UserError(f"{type(pl_module).__name__} has no adversary; wrap your network in RobustClassifier")
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            raise UserError(
                f"{type(trainer.strategy).__name__} is not supported: input gradients of sharded parameters "
                "are untested; use trainer.strategy=ddp"
            )
        self._trainer = trainer
        self._reducer = default_reducer()
        pl_module.attach(self)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Detach from the trainer; the module keeps its metrics."""
        self._trainer = None
        self._reducer = LocalReducer()

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, batch_idx: int) -> AttackResult:
        """The training attack on one batch."""
        return self._run(self.attack, model, x, y, batch_idx)

    def judge(self, model: nn.Module, x: Tensor, y: Tensor, batch_idx: int) -> Evidence:
        """Both evaluation attacks on one batch."""
        q = self._run(self._q_attack, model, x, y, batch_idx)
        adv = self._run(self.val_attack, model, x, y, batch_idx)
        with torch.no_grad():
            q_logits = forward(model, q.x_adv)
            adv_logits = forward(model, adv.x_adv) if adv.adv_logits is None else adv.adv_logits
        measures = {
            "clean_logits": q.logits,
            "clean_losses": q.losses,
            "q_logits": q_logits,
            "q_losses": self.first_order.loss(q_logits, y),
            "dual_norms": q.dual_norms,
            "q_distances": q.distances,
            "adv_logits": adv_logits,
            "distances": adv.distances,
            "labels": y,
            "weight": self.weight(len(x), batch_idx, x.device),
        }
        return Evidence(measures, adv.x_adv, adv_logits)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Upsilon of the whole validation set."""
        sanity = trainer.sanity_checking
        limits = trainer.num_sanity_val_batches if sanity else trainer.num_val_batches
        self._measure(trainer, pl_module, trainer.val_dataloaders, limits)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Upsilon of the whole test set."""
        self._measure(trainer, pl_module, trainer.test_dataloaders, trainer.num_test_batches)

    def weight(self, size: int, batch_idx: int, device: torch.device) -> Tensor:
        """1 for real images, 0 for padding; see `wdro_train.data.padding`."""
        assert self._trainer is not None
        return batch_weight(self._trainer, size, batch_idx, device)

    def state_dict(self) -> dict[str, Any]:
        """The running scope's estimates, if the training attack keeps any."""
        scope = getattr(self.attack, "scope", None)
        return {"scope": scope.state_dict()} if isinstance(scope, RunningScope) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the running scope."""
        scope = getattr(self.attack, "scope", None)
        if isinstance(scope, RunningScope) and "scope" in state_dict:
            scope.load_state_dict(state_dict["scope"])

    def _run(self, attack: Attack, model: nn.Module, x: Tensor, y: Tensor, batch_idx: int) -> AttackResult:
        assert self._trainer is not None
        stage = self._trainer.state.stage
        epoch = self._trainer.current_epoch if stage == RunningStage.TRAINING else 0
        code = 1 if stage is None else _STAGES.get(stage, 1)
        key = np.random.SeedSequence([self.seed, code, epoch, batch_idx])
        generator = torch.Generator(x.device).manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        weight = self.weight(len(x), batch_idx, x.device)
        return attack(model, x, y, weight=weight, reducer=self._reducer, generator=generator)

    def _measure(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loaders: Any, limits: list[int | float]
    ) -> None:
        """One pass of first-order gradients over the set that is about to be judged."""
        if len(limits) != 1:
            raise UserError(f"{len(limits)} evaluation sets are not supported; pass a single dataloader")
        self._q_attack = self.first_order
        if not self.whole_set:
            return
        loader = only_loader(loaders)
        q = self.first_order.ball.q
        total = torch.zeros(3, dtype=torch.float64, device=pl_module.device)
        batches = iter(_second_reader(loader))
        limit = None if limits[0] == float("inf") else int(limits[0])
        for batch_idx, batch in enumerate(islice(batches, limit)):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            x, y = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            with trainer.precision_plugin.val_step_context():
                weight = self.weight(len(x), batch_idx, x.device)
                part = self.first_order.gradient_moment(pl_module, x, y, weight=weight)
            total = moments.merge(torch.stack([total, part]), q)
        self._q_attack = copy.copy(self.first_order)
        self._q_attack.scope = WholeSetScope(moments.merge(self._reducer.gather(total), q))


def _second_reader(loader: Any) -> Iterable[Any]:
    """The same batches again; a loader with persistent workers has only one iterator, which is in use."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader  # type: ignore[no-any-return]
    return DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )

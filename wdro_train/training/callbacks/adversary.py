"""`DistributionalAdversary`: generates the Q_delta batch for a `RobustClassifier`, on any number of ranks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import partial
from itertools import islice
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from wdro_train.attacks import WFGSM, WPGD, Attack, AttackResult, MinimalDistance, Pool
from wdro_train.attacks.base import Stateful
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.data.padding import batch_weight, only_loader
from wdro_train.metrics import AdversarialAccuracy, FirstOrderBounds, WorstCaseAccuracy
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.power_mean import merge
from wdro_train.theory.sensitivity import WholeSetScope
from wdro_train.training.module import Evidence, RobustClassifier
from wdro_train.training.resuming import Kind
from wdro_train.utils.distributed import LocalReducer, Reducer, default_reducer
from wdro_train.utils.errors import UserError

_STAGES = {RunningStage.TRAINING: 0, RunningStage.VALIDATING: 1, RunningStage.TESTING: 2}


class DistributionalAdversary(L.Callback):
    """Attacks training batches, and judges validation and test batches.

    In training the module calls `perturb` when its objective asks for adversarial images. In validation and
    test `judge` runs up to three: `first_order` (W-FGSM, whose images are Q_delta: bounds and ratios),
    `val_attack` (`adv_acc`, `ratio`) and `distances` (`worst_acc`, the exact worst case over the whole set). With
    `whole_set=True` one extra forward and backward pass over the set
    comes first, so that Upsilon, Q_delta and the bounds are those of the whole set. `val_attack` treats every
    global batch as a distribution of its own (p = inf: no difference).

    Random starts depend on seed, epoch, batch and the image's place in the global batch only, so neither the
    number of ranks nor an interruption changes them.

    Args:
        attack: The training attack.
        val_attack: The validation attack; by default 10 steps of W-PGD with ReDLR and 20 with CE, of which the
            cheapest flips are kept. None: no `adv_acc`.
        first_order: W-FGSM for the bounds; by default with ReDLR. None: no bounds.
        distances: Minimum-norm attack for `worst_acc`; none by default, and with p = 1 the only one that there is.
        whole_set: Take Upsilon of the bounds over the whole set; False: over each global batch.
        seed: Seeds the random starts.
    """

    # A running scope, a marginal distance or a price belong to the threat and the attack they were learnt with.
    forgets_on = frozenset({Kind.MEASURE, Kind.ATTACK})

    def __init__(
        self,
        attack: Attack,
        *,
        val_attack: Attack | Literal["default"] | None = "default",
        first_order: WFGSM | Literal["default"] | None = "default",
        distances: MinimalDistance | None = None,
        whole_set: bool = True,
        seed: int = 0,
    ) -> None:
        ball = attack.ball
        threat: dict[str, Any] = {"p": ball.p, "norm": ball.norm, "delta": ball.delta}
        self.attack = attack
        self._ball = ball
        if val_attack == "default":
            pgd = partial(WPGD, **threat, keep="cheapest")
            val_attack = Pool([pgd(loss="redlr", steps=10), pgd(loss="ce", steps=20)])
        self.val_attack: Attack | None = val_attack
        self.first_order = WFGSM(**threat, loss="redlr") if first_order == "default" else first_order
        self.distances = distances
        if distances is not None and distances.ground.order != ball.norm:
            raise UserError(
                f"distances in the l_{distances.ground.order:g} norm say nothing about an l_{ball.norm:g} ball"
            )
        self.whole_set = whole_set
        self.seed = seed
        self._reducer: Reducer = LocalReducer()
        self._trainer: L.Trainer | None = None
        self._q_attack: WFGSM | None = self.first_order

    @property
    def ball(self) -> WassersteinBall:
        """The threat that is judged: the training attack's, whatever a warm-up makes of it."""
        return self._ball

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

    def metrics(self) -> list[Metric]:
        """What `judge` gives evidence for, as fresh metrics."""
        metrics: list[Metric] = []
        if self.val_attack is not None:
            metrics.append(AdversarialAccuracy(self.ball))
        if self.first_order is not None:
            metrics.append(FirstOrderBounds(self.ball))
        if self.distances is not None:
            metrics.append(WorstCaseAccuracy(self.ball))
        return metrics

    def judge(self, model: nn.Module, x: Tensor, y: Tensor, batch_idx: int) -> Evidence:
        """The evaluation attacks on one batch."""
        weight = self.weight(len(x), batch_idx, x.device)
        measures = {"labels": y, "weight": weight}
        if self._q_attack is not None and self.first_order is not None:
            q = self._run(self._q_attack, model, x, y, batch_idx)
            with torch.no_grad():
                q_logits = forward(model, q.x_adv)
            measures |= {
                "clean_logits": q.logits,
                "clean_losses": q.losses,
                "q_logits": q_logits,
                "q_losses": self.first_order.loss(q_logits, y),
                "dual_norms": q.dual_norms,
                "q_distances": q.distances,
            }
        else:
            with attack_mode(model), torch.no_grad():
                measures["clean_logits"] = forward(model, x.clone().float())
        x_adv, adv_logits = x, None
        flips = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
        if self.distances is not None:
            found = self.distances(model, x, y, generator=self._generator(batch_idx, x.device))
            x_adv, flips = found.x_adv, found.distances
        if self.val_attack is not None:
            adv = self._run(self.val_attack, model, x, y, batch_idx)
            x_adv, adv_logits = adv.x_adv, adv.adv_logits
            measures["distances"] = adv.distances
        with torch.no_grad():
            adv_logits = forward(model, x_adv) if adv_logits is None else adv_logits
        if self.val_attack is not None:
            measures["adv_logits"] = adv_logits
            flips = torch.where(~correct(adv_logits, y), torch.minimum(flips, measures["distances"]), flips)
        measures["flips"] = torch.where(correct(measures["clean_logits"], y), flips, 0.0)
        return Evidence(measures, x_adv, adv_logits)

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
        """What the training attack, or its scope, has learnt."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what it had learnt."""
        for name, part in self._stateful().items():
            if name in state_dict:
                part.load_state_dict(state_dict[name])

    def _stateful(self) -> dict[str, Stateful]:
        parts = {"attack": self.attack, "scope": getattr(self.attack, "scope", None)}
        return {name: part for name, part in parts.items() if isinstance(part, Stateful)}

    def _run(self, attack: Attack, model: nn.Module, x: Tensor, y: Tensor, batch_idx: int) -> AttackResult:
        weight = self.weight(len(x), batch_idx, x.device)
        generator = self._generator(batch_idx, x.device)
        return attack(model, x, y, weight=weight, reducer=self._reducer, generator=generator)

    def _generator(self, batch_idx: int, device: torch.device) -> torch.Generator:
        """Seeded by seed, stage, epoch and batch, alike on all ranks."""
        assert self._trainer is not None
        stage = self._trainer.state.stage
        epoch = self._trainer.current_epoch if stage == RunningStage.TRAINING else 0
        code = 1 if stage is None else _STAGES.get(stage, 1)
        key = np.random.SeedSequence([self.seed, code, epoch, batch_idx])
        return torch.Generator(device).manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def _measure(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loaders: Any, limits: list[int | float]
    ) -> None:
        """One pass of first-order gradients over the set that is about to be judged."""
        assert isinstance(pl_module, RobustClassifier)
        if len(limits) != 1:
            raise UserError(f"{len(limits)} evaluation sets are not supported; pass a single dataloader")
        self._q_attack = self.first_order
        if self.first_order is None or not self.whole_set:
            return
        loader = only_loader(loaders)
        q = self.first_order.ball.q
        total = torch.zeros(3, dtype=torch.float64, device=pl_module.device)
        batches = iter(_second_reader(loader))
        limit = None if limits[0] == float("inf") else int(limits[0])
        for batch_idx, batch in enumerate(islice(batches, limit)):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            with trainer.precision_plugin.val_step_context():
                x, y = pl_module.receive(batch)
                weight = self.weight(len(x), batch_idx, x.device)
                part = self.first_order.gradient_moment(pl_module, x, y, weight=weight)
            total = merge(torch.stack([total, part]), q)
        self._q_attack = copy.copy(self.first_order)
        self._q_attack.scope = WholeSetScope(merge(self._reducer.gather(total), q))


def _second_reader(loader: Any) -> Iterable[Any]:
    """The same batches again; a loader with persistent workers has only one iterator, which is in use."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader  # type: ignore[no-any-return]
    # A copy, because a DataLoader cannot be built anew from its own attributes for every kind of dataset and batching.
    # Without an iterator it starts workers of its own, which end when it is no longer used.
    twin = copy.copy(loader)
    twin._iterator = None
    return twin

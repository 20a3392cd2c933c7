"""`DistributionalAdversary`: attaches an adversary to an `AdversarialModule`, on any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

from wdro_train.attacks import WFGSM, WPGD, Attack, MinimalDistance, Pool
from wdro_train.certificates import Certificate
from wdro_train.certificates.named import named_certificate
from wdro_train.theory.ball import WassersteinBall
from wdro_train.training.adversarial_module import AdversarialModule
from wdro_train.training.adversary import AdversarialJudge, Attacker, CleanJudge, EvaluationSet, gradient_moment_of_set
from wdro_train.training.resuming import Kind
from wdro_train.utils.errors import UserError

# On the default run's network (360 digits, W_2, radius 0.1 in l_inf) 10 steps leave 44.2 %, 20 steps 42.3 %, 60 steps
# 41.6 %, and the validation attack 56.7 %.
_TEST_STEPS = 20


class DistributionalAdversary(L.Callback):
    """Attacks training batches, and judges validation and test batches.

    In training the module asks `attacker` for images when its objective needs adversarial ones. In validation and test
    `judge` runs up to three attacks, which bound the accuracy left from above: `first_order` (W-FGSM, whose images are
    Q_delta: bounds and ratios), `val_attack` (`adv_acc`, `ratio`) and `distances` (`worst_acc`, the knapsack over the
    distances of the whole set). A `certificate` bounds it from below (`certified_acc`, the knapsack over radii). With
    `whole_set=True` one extra forward and backward pass over the set comes first, so that Upsilon, Q_delta and the
    bounds are those of the whole set. `val_attack` treats every global batch as a distribution of its own (at p = inf
    this makes no difference, as images do not share a budget).

    Random starts depend on seed, epoch, batch and the image's place in the global batch only, so neither the
    number of ranks nor an interruption changes them.

    Args:
        attack: The training attack. Its ball is the threat that is judged.
        val_attack: The validation attack; by default 10 steps of W-PGD with ReDLR and 20 with CE, of which the
            cheapest flips are kept. None: no `adv_acc`.
        first_order: W-FGSM for the bounds; by default with ReDLR. None: no bounds.
        distances: Minimum-norm attack for `worst_acc`; none by default, and with p = 1 the only one that there is.
        test_distances: The same for the test, which is judged once and should be near the truth: by default of 20
            steps, or `distances` if they have more, together with what `val_attack` flips. None: no `worst_acc`.
        certificate: What `certified_acc` rests on, a lower bound on the accuracy left: `ibp`, `crown_ibp`,
            `crown`, `alpha_crown`, `lipschitz`, or a `wdro_train.certificates.Certificate`; none by default.
        whole_set: Take Upsilon of the bounds over the whole set; False: over each global batch.
        seed: Seeds the random starts.

    Attributes:
        attacker: What the module trains against.
        judge: What the module is judged by in validation.
        test_judge: What it is judged by in a test.
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
        test_distances: MinimalDistance | Literal["default"] | None = "default",
        certificate: str | Certificate | None = None,
        whole_set: bool = True,
        seed: int = 0,
    ) -> None:
        ball = attack.ball
        if test_distances == "default":
            test_distances = default_test_distances(ball)
            if distances is not None and (test_distances is None or distances.effort.steps > _TEST_STEPS):
                test_distances = distances
        for found in (distances, test_distances):
            if found is not None and found.ground.order != ball.norm:
                raise UserError(
                    f"distances in the l_{found.ground.order:g} norm say nothing about an l_{ball.norm:g} ball"
                )
        if val_attack == "default":
            val_attack = default_validation_attack(ball)
        if first_order == "default":
            first_order = WFGSM(p=ball.p, norm=ball.norm, delta=ball.delta, loss="redlr")
        self.attacker = Attacker(attack, seed)
        if isinstance(certificate, str):
            certificate = named_certificate(certificate, ball.norm)
        if certificate is not None and certificate.norm != ball.norm:
            raise UserError(
                f"a certificate in the l_{certificate.norm:g} norm says nothing about an l_{ball.norm:g} ball; choose "
                "another one, or leave it out"
            )
        self.judge = AdversarialJudge(ball, val_attack, first_order, distances, certificate, seed)
        self.test_judge = replace(self.judge, distances=test_distances)
        self.whole_set = whole_set

    @property
    def attack(self) -> Attack:
        """The training attack. A warm-up gives it a smaller ball than the one that is judged."""
        return self.attacker.attack

    @property
    def ball(self) -> WassersteinBall:
        """The threat that is judged, whatever a warm-up makes of the training attack's ball."""
        return self.judge.ball

    @property
    def worst_case_of_the_test(self) -> str | None:
        """What `test/worst_acc` is, in a sentence for people; None if it is not measured."""
        distances = self.test_judge.distances
        if distances is None:
            return None
        flips = "" if self.test_judge.val_attack is None else " and the flips of adv_acc"
        return (
            f"worst_acc: knapsack over distances of {distances.effort.steps} steps{flips}, over all images "
            "of the test; an upper bound, which evaluate.py tightens"
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Attach to the module.

        Raises:
            UserError: A module or a strategy it cannot serve.
        """
        if not isinstance(pl_module, AdversarialModule):
            name = type(pl_module).__name__
            raise UserError(
                f"{name} cannot ask this callback for attacked images; make it class {name}(AdversarialModule) and "
                "train on self.attacked(batch, batch_idx).x_adv, or wrap its network in RobustClassifier, or leave "
                "this callback out and call an attack of wdro_train.attacks in training_step (docs/train.md)"
            )
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy):
            raise UserError(
                f"{type(trainer.strategy).__name__} is not supported: input gradients of sharded parameters "
                "are untested; use trainer.strategy=ddp"
            )
        pl_module.attach(self.attacker, self.test_judge if stage == "test" else self.judge)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Detach from the module: what was measured of one set must judge no other."""
        assert isinstance(pl_module, AdversarialModule)
        pl_module.attach(None, CleanJudge())

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure Upsilon of the whole validation set."""
        limits = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._before(trainer, pl_module, self.judge, trainer.val_dataloaders, limits)

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure Upsilon of the whole test set."""
        self._before(trainer, pl_module, self.test_judge, trainer.test_dataloaders, trainer.num_test_batches)

    def state_dict(self) -> dict[str, Any]:
        """What the training attack, or the scope of its Upsilon, has learnt."""
        return self.attacker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what it had learnt."""
        self.attacker.load_state_dict(state_dict)

    def _before(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        judge: AdversarialJudge,
        loaders: Any,
        limits: list[int | float],
    ) -> None:
        """Let the set that comes be judged as one distribution, if this is asked for."""
        assert isinstance(pl_module, AdversarialModule)
        images = EvaluationSet.of(loaders, limits)
        pl_module.judge = judge.fresh()
        attack = judge.first_order
        if attack is None or not self.whole_set:
            return
        moment = gradient_moment_of_set(attack, pl_module, pl_module.inspector, images, trainer)
        pl_module.judge = judge.with_upsilon(moment)


def default_validation_attack(ball: WassersteinBall) -> Attack:
    """What `val/adv_acc` means unless a validation attack is given.

    Of 10 steps of W-PGD with ReDLR and 20 with cross-entropy the cheapest flips are kept. Two losses, because each
    misses images that the other flips; `conf/callbacks/default.yaml` says the same in YAML.

    Args:
        ball: The threat.
    """
    pgd = partial(WPGD, p=ball.p, norm=ball.norm, delta=ball.delta, random_start=False, keep="cheapest")
    return Pool([pgd(loss="redlr", steps=10), pgd(loss="ce", steps=20)])


def default_test_distances(ball: WassersteinBall) -> MinimalDistance | None:
    """What `test/worst_acc` rests on unless a minimum-norm attack is given; None for norms that have none.

    Args:
        ball: The threat.
    """
    if ball.norm not in (1, 2, float("inf")):
        return None
    return MinimalDistance(norm=ball.norm, steps=_TEST_STEPS)

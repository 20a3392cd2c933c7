"""W-PGD: projected gradient ascent on the whole batch as one distribution; PGD is the case p = inf."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from wdro_train.attacks.ascent import ProjectedStep, steepness, upsilon_in_scope
from wdro_train.attacks.base import Attacked, AttackResult
from wdro_train.attacks.gradient import InputGradient, forward, input_gradient
from wdro_train.attacks.mode import BatchNormMode, attack_mode, resolve_batch_norm
from wdro_train.attacks.network_check import check_logits, checked_loss
from wdro_train.attacks.random_start import random_start
from wdro_train.attacks.selection import Keep, Keeper, make_keeper
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import per_image
from wdro_train.theory.losses import LossFunction, resolve_loss
from wdro_train.theory.power_mean import moment
from wdro_train.theory.sensitivity import Scope, resolve_scope
from wdro_train.utils.contract import check_batch
from wdro_train.utils.distributed import LocalReducer, Reducer
from wdro_train.utils.errors import UserError


class WPGD:
    """Many steps of W-FGSM: x <- project(x + alpha h(g) (||g||_* / Upsilon_t)^(q-1)), alpha = step_size delta / steps.

    Theory, section 4. A step takes one forward and one backward pass (with `keep="cheapest"` or `"nearest"` over the
    images that have not flipped yet only), and unless the last iterate is kept the attack ends with one more forward
    pass. Under DDP a step takes two small collectives, three unless the last iterate is kept. Departures from the 2023
    code:

    - the projection comes after the clamping, so that no budget is lost to the box;
    - images without gradient (under ReDLR: those already misclassified) hold their place when the others are
      pulled back, so that what was won is not undone;
    - every p in (1, inf] and every ground norm, scale-free.

    The defaults are those to train with, in Python as on the command line. To judge a network take more steps, start at
    the images, and keep the nearest flips.

    Args:
        p: Wasserstein order in (1, inf].
        norm: Ground norm in [1, inf].
        delta: Radius.
        loss: `ce`, `dlr`, `redlr` or a per-image loss.
        steps: Number of gradient steps.
        step_size: Length of the whole path in units of delta; a step is step_size * delta / steps. 1.875 is that of
            the 2023 code.
        random_start: Start from uniform noise of size delta instead of the clean images.
        keep: What is returned: the `last` iterate, which is the one to train on; the `best` one (lowest accuracy over
            the batch); the `cheapest` flips: images stop where they first flip, the budget moves on to the others, and
            the flips that it pays for are returned, cheapest first; or the `nearest` ones: the same, each brought back
            to the boundary by bisection when it is found (at p < inf, by six forward passes of each image that flips),
            so that long steps waste no budget. `nearest` is the strongest against accuracy: on the network of
            docs/results/step_cost.md 16 steps and a `step_size` of 3 leave no more than 50 usual ones with `cheapest`.
        box: Use the free gradient and project after clamping; False is the paper's order.
        scope: Over what Upsilon and the spent budget are taken: `batch` (the global batch), `running`, or
            a `Scope`.
        batch_norm: Mode the model runs in during the attack, `eval` or `train`.
        batch_size: Images per forward pass; None for all at once.
        progress: Called after each step with the number of steps done.
    """

    def __init__(
        self,
        *,
        p: float | str,
        norm: float | str,
        delta: float | str,
        loss: str | LossFunction = "ce",
        steps: int = 8,
        step_size: float = 1.875,
        random_start: bool = True,
        keep: Keep = "last",
        box: bool = True,
        scope: str | Scope = "batch",
        batch_norm: BatchNormMode = "eval",
        batch_size: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if steps < 1:
            raise UserError(f"attack.steps={steps} makes no step; choose at least 1")
        if not step_size > 0:
            raise UserError(f"attack.step_size={step_size} does not ascend; choose a positive one")
        if keep == "nearest" and batch_norm == "train":
            raise UserError(
                "attack.keep='nearest' looks at single images again, which BatchNorm in train mode couples; "
                "choose attack.batch_norm=eval or attack.keep=cheapest"
            )
        self.ball = WassersteinBall(p, norm, delta).require_first_order("W-PGD")
        self.loss = resolve_loss(loss)
        self.steps = int(steps)
        self.step_size = float(step_size)
        self.random_start = random_start
        self.keep: Keep = keep
        self.box = box
        self.scope = resolve_scope(scope)
        self.batch_norm = resolve_batch_norm(batch_norm)
        self.batch_size = batch_size
        self.progress = progress

    @property
    def rule(self) -> ProjectedStep:
        """The formulas of a step, in the ball and with the scope that the attack has now."""
        return ProjectedStep(self.ball, self.step_size * self.ball.delta / self.steps, self.box, self.scope)

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
        """Perturb a batch; see `Attack`."""
        x, y, labels = check_batch(x, y)
        loss = checked_loss(self.loss, labels)
        reducer = reducer or LocalReducer()
        first: InputGradient | None = None
        with attack_mode(model, self.batch_norm):
            x, y = x.clone().float(), y.clone().long()
            keeper = make_keeper(self.keep, self.ball, x, y, weight, reducer, model=model, batch_size=self.batch_size)
            x_adv = x
            if self.random_start:
                x_adv = random_start(self.ball, x, reducer, generator)
                if keeper is not None:
                    self._offer(keeper, model, x, y, loss)
                    check_logits(model, x, keeper.logits, labels)
            nonfinite = torch.zeros((), dtype=torch.int64, device=x.device)
            for step in range(self.steps):
                found = self._gradient(model, x_adv, y, loss, keeper)
                nonfinite += found.nonfinite
                if keeper is not None:
                    keeper.offer(x_adv, found.logits, found.losses)
                    x_adv = keeper.hold(x_adv)
                    if keeper.finished is not None:
                        found.gradient.mul_(per_image(~keeper.finished, x))
                slope, dual_norms = steepness(self.ball.ground, found.gradient, x_adv, box=self.box)
                parts = reducer.gather(moment(dual_norms, weight, self.ball.q))
                upsilon = upsilon_in_scope(parts, self.ball.q, self.scope, step)
                if first is None:
                    check_logits(model, x, found.logits, labels)
                    first, first_norms, first_upsilon = found, dual_norms, upsilon
                x_adv = self._step(x, x_adv, slope, dual_norms, upsilon, weight, reducer, step, keeper is not None)
                if self.progress is not None:
                    self.progress(step + 1)
            assert first is not None
            if keeper is not None:
                self._offer(keeper, model, x_adv, y, loss)
                x_adv = keeper.choose()
            result = AttackResult(
                x_adv=x_adv.detach(),
                distances=self.ball.ground.distances(x_adv - x),
                upsilon=first_upsilon,
                dual_norms=first_norms,
                losses=first.losses,
                logits=first.logits,
                zero_gradients=(first_norms == 0).sum(),
                nonfinite_gradients=nonfinite,
                adv_logits=None if keeper is None else keeper.logits,
                best_mean_loss=None if keeper is None else keeper.mean_loss,
            )
        return replace(result, attacked=Attacked(model, y))  # now that the buffers are as before

    def _gradient(
        self, model: nn.Module, x_adv: Tensor, y: Tensor, loss: LossFunction, keeper: Keeper | None
    ) -> InputGradient:
        """The gradient at the iterate; finished images are not looked at again, at one transfer to the host a step.

        In `train` mode BatchNorm couples the images, so all of them stay in.
        """
        finished = None if keeper is None or self.batch_norm == "train" else keeper.finished
        if keeper is None or finished is None:
            return input_gradient(model, x_adv, y, loss, self.batch_size)
        rows = (~finished).nonzero().squeeze(1)
        gradient, logits = torch.zeros_like(x_adv), keeper.logits.clone()
        nonfinite = torch.zeros((), dtype=torch.int64, device=y.device)
        if len(rows):
            part = input_gradient(model, x_adv.index_select(0, rows), y[rows], loss, self.batch_size)
            gradient.index_copy_(0, rows, part.gradient)
            logits[rows], nonfinite = part.logits.to(logits), part.nonfinite
        return InputGradient(logits, loss(logits, y).detach(), gradient, nonfinite)

    @torch.no_grad()
    def _offer(self, keeper: Keeper, model: nn.Module, x: Tensor, y: Tensor, loss: LossFunction) -> None:
        """Show the keeper a point from which no step is taken, at the cost of one forward pass."""
        logits = forward(model, x, self.batch_size)
        keeper.offer(x, logits, loss(logits, y))

    @torch.no_grad()
    def _step(
        self,
        x: Tensor,
        x_adv: Tensor,
        slope: Tensor,
        dual_norms: Tensor,
        upsilon: Tensor,
        weight: Tensor | None,
        reducer: Reducer,
        step: int,
        kept: bool,
    ) -> Tensor:
        """One ascent step from x_adv and the projection back onto the ball around x.

        Where iterates are kept each is projected exactly, elsewhere the last one alone.
        """
        rule, held = self.rule, dual_norms == 0
        u, distances = rule.ascent(x, x_adv, slope, dual_norms, upsilon, into=slope)
        parts = reducer.gather(rule.displacement_moments(distances, held, weight))
        exact = kept or step == self.steps - 1
        return rule.project(x, u, distances, rule.allowed(distances, held, parts, step), exact=exact, into=u)

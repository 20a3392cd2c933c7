"""Which minimum-norm attack finds the nearest flips at the same number of gradient evaluations?

`python -m wdro_train.tools.compare_attacks CKPT`. Every attack gets the same correct images. What it costs is counted
at the network itself, and what it finds is measured again: a point that does not flip counts as not found.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wdro_train.attacks import WPGD, MinimalDistance
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.evaluation.autoattack import autoattack, require
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import command_line
from wdro_train.tools.loading import add_loading_options, chosen_network, split_on_device
from wdro_train.utils import tables
from wdro_train.utils.devices import synchronize
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

Attacker = Callable[[nn.Module, Tensor, Tensor], Tensor]
_LONG = 50  # steps of the attack with more effort than the others, as many as `gradient_masking` takes
_DEEPFOOL_CANDIDATES = 10  # rival classes that DeepFool considers, foolbox's default


@dataclass(frozen=True)
class Outcome:
    """What one attack found on the correct images, and what it cost.

    Attributes:
        name: The attack.
        distances: Re-measured, shape [N], 0 for misclassified images and inf where the point does not flip.
        forward: Images forward, per correct image.
        backward: Images backward, per correct image.
        seconds: Wall-clock time.
    """

    name: str
    distances: np.ndarray[Any, np.dtype[np.float64]]
    forward: float
    backward: float
    seconds: float


def measure(name: str, attack: Attacker, model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall) -> Outcome:
    """Run an attack on the correct images and measure what it returns.

    Args:
        name: How to call it.
        attack: Takes model, images and labels; returns images.
        model: Maps images in [0, 1] to logits.
        x: Images in [0, 1], shape [N, C, H, W].
        y: Labels, shape [N].
        ball: Gives the norm.

    Raises:
        UserError: The network classifies no image correctly.
    """
    with attack_mode(model), torch.no_grad():
        right = correct(forward(model, x), y)
    if not right.any():
        raise UserError("the network classifies no image correctly, so there is nothing to attack")
    rows = right.nonzero().squeeze(1)
    synchronize(x.device)
    start = time.perf_counter()
    with attack_mode(model), PassCounter(model) as passes:
        points = attack(model, x[rows], y[rows]).detach()
    synchronize(x.device)
    seconds = time.perf_counter() - start
    with attack_mode(model), torch.no_grad():
        inside = ((points >= 0) & (points <= 1)).flatten(1).all(1)
        flipped = ~correct(forward(model, points), y[rows]) & inside
    distances = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    distances[rows] = torch.where(flipped, ball.ground.distances(points - x[rows]), math.inf)
    return Outcome(name, distances.cpu().numpy(), passes.forward / len(rows), passes.backward / len(rows), seconds)


def ours(norm: float, steps: int, **options: int) -> Attacker:
    """`MinimalDistance` as a function from images to images.

    Args:
        norm: Ground norm.
        steps: Gradient steps.
        **options: Further arguments of `MinimalDistance`.
    """
    attack = MinimalDistance(norm=norm, steps=steps, **options)
    return lambda model, x, y: attack(model, x, y).x_adv


def wpgd(ball: WassersteinBall, steps: int) -> Attacker:
    """W-PGD at one radius with cross-entropy, as on the poster.

    Args:
        ball: The threat, p > 1.
        steps: Gradient steps.
    """
    attack = WPGD(p=ball.p, norm=ball.norm, delta=ball.delta, loss="ce", steps=steps, keep="best", random_start=False)
    return lambda model, x, y: attack(model, x, y).x_adv


def other_attacks(norm: float, budget: int, classes: int) -> Iterator[tuple[str, Attacker]]:
    """Foolbox's minimum-norm attacks of a norm, with `budget` gradient evaluations an image.

    FMN and DDN spend one a step. FMN is run with foolbox's step and with a tenth of it, which suits images in
    [0, 1] better under l_inf. DeepFool spends one a step and rival class, and stops when all images are flipped:
    it is run with what the budget allows, and once more to its own end.

    Args:
        norm: 1, 2 or inf.
        budget: Gradient evaluations an image.
        classes: Number of logits.

    Raises:
        UserError: Foolbox is not installed.
    """
    attacks = require("foolbox").attacks
    short = {math.inf: "LInf", 2.0: "L2", 1.0: "L1"}[norm]
    fmn = getattr(attacks, f"{short}FMNAttack")
    yield "FMN", _foolbox(fmn(steps=budget))
    yield "FMN, step 0.1", _foolbox(fmn(steps=budget, max_stepsize=0.1))
    if norm == 2:
        yield "DDN", _foolbox(attacks.DDNAttack(steps=budget))
    if norm != 1:
        deepfool = attacks.L2DeepFoolAttack if norm == 2 else attacks.LinfDeepFoolAttack
        candidates = min(_DEEPFOOL_CANDIDATES, classes)
        steps = max(budget // candidates, 1)
        yield "DeepFool", _foolbox(deepfool(steps=steps, candidates=candidates))
        yield "DeepFool, to its end", _foolbox(deepfool(candidates=candidates))


def _foolbox(attack: Any) -> Attacker:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = require("foolbox").PyTorchModel(model, bounds=(0, 1), device=x.device)
        points: Tensor = attack(wrapped, x, y, epsilons=None)[1]
        return points

    return run


def compare(
    model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, *, steps: int = 30, with_autoattack: bool = False
) -> list[Outcome]:
    """Run MinimalDistance, other attacks at the same number of gradient evaluations, and W-PGD with 50 steps.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images, shape [N, C, H, W].
        y: Labels, shape [N].
        ball: Norm and radius of the comparison.
        steps: Steps of MinimalDistance.
        with_autoattack: Also run AutoAttack at the ball's radius.
    """
    first = measure("MinimalDistance", ours(ball.norm, steps), model, x, y, ball)
    with torch.no_grad():
        classes = forward(model, x[:1]).shape[1]
    rest = list(other_attacks(ball.norm, round(first.backward), classes))
    if ball.p > 1:
        rest.append((f"W-PGD, {_LONG} steps", wpgd(ball, _LONG)))
    if with_autoattack:
        rest.append(("AutoAttack", lambda model, x, y: autoattack(model, x, y, ball)))
    return [first, *(measure(name, attack, model, x, y, ball) for name, attack in rest)]


def rows(outcomes: Sequence[Outcome], ball: WassersteinBall) -> list[list[str]]:
    """One row an attack: distances, accuracies, cost; time relative to the first."""
    result = []
    for found in outcomes:
        curve = RobustnessCurve(found.distances)
        correct_ones = found.distances[found.distances > 0]
        result.append(
            [
                found.name,
                f"{float(np.median(correct_ones)):.4f}",
                tables.four_decimals(curve.accuracy(ball.delta, ball.p)),
                tables.four_decimals(curve.accuracy(ball.delta, math.inf)),
                f"{found.backward:.1f}",
                f"{found.forward:.1f}",
                f"{found.seconds / outcomes[0].seconds:.2f}",
            ]
        )
    return result


def main(arguments: Sequence[str] | None = None) -> list[Outcome]:
    """Run the command.

    Args:
        arguments: The command line; None for that of the process.

    Returns:
        What every attack found.
    """
    parser = command_line.parser("compare_attacks", __doc__)
    command_line.add_checkpoint(parser)
    parser.add_argument(
        "--norm",
        type=command_line.ball("norm"),
        choices=(1.0, 2.0, math.inf),
        help="The ground norm is 1, 2 or inf. By default it is the one that the network was trained for.",
    )
    parser.add_argument(
        "--p",
        type=command_line.ball("p"),
        help="The Wasserstein order of the knapsack accuracy. By default it is the one of the training.",
    )
    parser.add_argument(
        "--delta", type=command_line.ball("delta"), help="The radius. By default it is the one of the training."
    )
    parser.add_argument(
        "--steps", type=command_line.whole(1), default=30, help="MinimalDistance takes this many steps, by default 30."
    )
    parser.add_argument(
        "--limit", type=command_line.whole(1), default=500, help="So many images are attacked, by default 500."
    )
    parser.add_argument(
        "--split", default="test", choices=("train", "val", "test"), help="The images are those of train, val or test."
    )
    parser.add_argument(
        "--autoattack", action="store_true", help="Run AutoAttack at the radius too, for p = inf, which is slow."
    )
    add_loading_options(parser)
    given = parser.parse_args(arguments)
    network = chosen_network(given, given.checkpoint)
    ball = network.threat(p=given.p, norm=given.norm, delta=given.delta)
    x, y = split_on_device(network, given.split, given.limit)
    outcomes = compare(network.model, x, y, ball, steps=given.steps, with_autoattack=given.autoattack)
    tables.show(
        f"{network.path}: {len(y)} {given.split} images, l_{ball.norm:g}",
        ["attack", "median", f"W_{ball.p:g}", "W_inf", "gradients", "forwards", "time"],
        rows(outcomes, ball),
        f"median distance of correct images; accuracy left in the ball of radius {ball.delta:.4g}, by the knapsack "
        "over the distances; gradients and forward passes a correct image, counted at the network; time relative to "
        f"MinimalDistance ({outcomes[0].seconds:.2f} s)",
    )  # fmt: skip
    return outcomes


if __name__ == "__main__":
    command_line.run(main)

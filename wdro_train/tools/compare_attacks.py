"""Which minimum-norm attack finds the nearest flips at the same number of gradient evaluations?

`python -m wdro_train.tools.compare_attacks CKPT`. Every attack gets the same correct images and as many gradients an
image as MinimalDistance took. What it costs is counted at the network itself, and what it finds is measured again: a
point that does not flip counts as not found.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks import WPGD, MinimalDistance
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.config.writable import refuse_unwritable
from wdro_train.evaluation.autoattack import autoattack
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.tools import attack_outcomes, command_line
from wdro_train.tools.attack_outcomes import Outcome, header, rows
from wdro_train.tools.loading import split_on_device
from wdro_train.tools.network_arguments import add_network_arguments, add_threat_arguments, given_network
from wdro_train.tools.peer_attacks import PACKAGES, Attacker, Task, peers
from wdro_train.utils import tables
from wdro_train.utils.devices import synchronize
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter


def measure(
    name: str,
    attack: Attacker,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: WassersteinBall,
    package: str = "wdro-train",
) -> Outcome:
    """Run an attack on the correct images and measure what it returns.

    Args:
        name: How to call it.
        attack: Takes model, images and labels; returns images.
        model: Maps images in [0, 1] to logits.
        x: Images in [0, 1], shape [N, C, H, W].
        y: Labels, shape [N].
        ball: Gives the norm.
        package: Where the attack comes from.

    Raises:
        UserError: The network classifies no image correctly.
    """
    with attack_mode(model), torch.no_grad():
        right = correct(forward(model, x), y)
    if not right.any():
        raise UserError("the network classifies no image correctly, so there is nothing to attack")
    right_ones = right.nonzero().squeeze(1)
    synchronize(x.device)
    start = time.perf_counter()
    with attack_mode(model), PassCounter(model) as passes:
        points = attack(model, x[right_ones], y[right_ones]).detach()
    synchronize(x.device)
    seconds = time.perf_counter() - start
    with attack_mode(model), torch.no_grad():
        inside = ((points >= 0) & (points <= 1)).flatten(1).all(1)
        flipped = ~correct(forward(model, points), y[right_ones]) & inside
    distances = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    distances[right_ones] = torch.where(flipped, ball.ground.distances(points - x[right_ones]), math.inf)
    images = len(right_ones)
    return Outcome(name, distances.cpu().numpy(), passes.forward / images, passes.backward / images, seconds, package)


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


@dataclass(frozen=True)
class Comparison:
    """Attacks side by side.

    Attributes:
        outcomes: What each found; MinimalDistance first.
        left_out: Which did not run, and why, in a sentence each.
    """

    outcomes: list[Outcome]
    left_out: list[str]


def compare(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    ball: WassersteinBall,
    *,
    steps: int = 30,
    packages: Sequence[str] = PACKAGES,
    with_autoattack: bool = False,
    seed: int = 0,
) -> Comparison:
    """Run MinimalDistance, then other attacks and W-PGD at the same number of gradient evaluations.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images, shape [N, C, H, W].
        y: Labels, shape [N].
        ball: Norm and radius of the comparison.
        steps: Steps of MinimalDistance.
        packages: Whose attacks are run.
        with_autoattack: Also run AutoAttack at the ball's radius, which takes far more gradients.
        seed: Of random starts.
    """
    torch.manual_seed(seed)
    first = measure("MinimalDistance", ours(ball.norm, steps), model, x, y, ball)
    with torch.no_grad():
        classes = forward(model, x[:1]).shape[1]
    task = Task(ball, round(first.backward), classes, seed)
    outcomes, left_out = [first], []
    if ball.p > 1:
        outcomes.append(measure("W-PGD, one radius", wpgd(ball, task.gradients), model, x, y, ball))
    for peer in (peer for package in packages for peer in peers(ball.norm, package)):
        torch.manual_seed(seed)
        try:
            outcomes.append(measure(peer.name, peer.build(task), model, x, y, ball, peer.package))
        except UserError as error:
            left_out.append(f"{peer.name} is left out: {error}")
        except Exception as error:  # whatever another package raises, the others still count
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            left_out.append(f"{peer.name} ({peer.package}) is left out, as it failed with {reason}")
    if with_autoattack:
        attack = measure(
            "AutoAttack",
            lambda model, x, y: autoattack(model, x, y, ball, seed=seed),
            model,
            x,
            y,
            ball,
            "pyautoattack",
        )
        outcomes.append(attack)
    return Comparison(outcomes, list(dict.fromkeys(left_out)))


def main(arguments: Sequence[str] | None = None) -> dict[int, Comparison]:
    """Run the command.

    Args:
        arguments: The command line; None for that of the process.

    Returns:
        What every attack found, by the number of steps of MinimalDistance.
    """
    given = _parser().parse_intermixed_args(arguments)
    if given.out is not None:
        refuse_unwritable("--out", str(given.out))
    network, written = given_network(given)
    ball = network.threat(p=given.p, norm=given.norm, delta=given.delta)
    if ball.norm not in (1, 2, math.inf):
        raise UserError(f"norm={ball.norm:g} has no attacks of other authors; choose --norm 1, 2 or inf")
    radius = written(ball.delta)
    x, y = split_on_device(network, given.split, given.limit)
    title = f"{network.name}: {len(y)} {given.split} images, l_{ball.norm:g}"
    found = {}
    for steps in dict.fromkeys([given.steps, *given.curve]):
        settings = {"packages": given.peers, "with_autoattack": given.autoattack, "seed": given.seed}
        found[steps] = compare(network.model, x, y, ball, steps=steps, **settings)
        _show(title, found[steps], ball, radius)
    if given.out is not None:
        about = {"network": network.name, "split": given.split, "images": len(y), "seed": given.seed, "radius": radius}
        for path in _write(given.out, found, ball, title, about):
            print(path)
    return found


def _parser() -> command_line.Parser:
    parser = command_line.parser("compare_attacks", __doc__)
    add_threat_arguments(parser)
    parser.add_argument(
        "--steps", type=command_line.whole(1), default=30, help="MinimalDistance takes this many steps, by default 30."
    )
    parser.add_argument(
        "--curve",
        type=lambda text: [command_line.whole(1)(part) for part in text.split(",")],
        default=[],
        metavar="STEPS",
        help="Compare at these numbers of steps, too, such as 10,100,300, for the figure.",
    )
    parser.add_argument(
        "--peers",
        type=_packages,
        default=PACKAGES,
        metavar="NAMES",
        help=f"The attacks of these packages run, by default of {','.join(PACKAGES)}; what is not installed is named.",
    )
    parser.add_argument(
        "--limit", type=command_line.whole(1), default=500, help="So many images are attacked, by default 500."
    )
    parser.add_argument(
        "--split", default="test", choices=("train", "val", "test"), help="The images are those of train, val or test."
    )
    parser.add_argument("--seed", type=command_line.whole(0), default=0, help="Seeds random starts, by default 0.")
    parser.add_argument("--out", type=Path, help="Write table, figure and numbers into this folder.")
    parser.add_argument(
        "--autoattack", action="store_true", help="Run AutoAttack at the radius too, for p = inf, which is slow."
    )
    add_network_arguments(parser)
    return parser


def _packages(text: str) -> tuple[str, ...]:
    found = tuple(filter(None, text.replace("-", "_").split(",")))
    unknown = [name for name in found if name not in PACKAGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is unknown; choose from {','.join(PACKAGES)}")
    return found


def _caption(ball: WassersteinBall, radius: str, first: Outcome) -> str:
    return (
        "median distance of correct images (- where fewer than half flip); accuracy left in the ball of radius "
        f"{radius}, by the knapsack over the distances; gradients and forward passes a correct image, counted at the "
        f"network; time relative to MinimalDistance ({first.seconds:.2f} s)"
    )


def _show(title: str, found: Comparison, ball: WassersteinBall, radius: str) -> None:
    tables.show(title, header(ball), rows(found.outcomes, ball), _caption(ball, radius, found.outcomes[0]))
    for sentence in found.left_out:
        print(sentence)


def _write(
    folder: Path, found: Mapping[int, Comparison], ball: WassersteinBall, title: str, about: Mapping[str, Any]
) -> list[Path]:
    found = dict(sorted(found.items()))
    runs = {steps: one.outcomes for steps, one in found.items()}
    left_out = list(dict.fromkeys(sentence for one in found.values() for sentence in one.left_out))
    parts = [f"# {title}", f"`{attack_outcomes.command(sys.argv[1:])}`"]
    for steps, one in found.items():
        parts += [f"## {steps} steps of MinimalDistance", tables.markdown(header(ball), rows(one.outcomes, ball))]
    parts += [*left_out, _caption(ball, about["radius"], next(iter(found.values())).outcomes[0])]
    figure = attack_outcomes.draw(runs, ball, title, about["radius"])
    return attack_outcomes.write(
        folder, "\n\n".join(parts) + "\n", attack_outcomes.as_data(runs, ball, about, left_out), figure
    )


if __name__ == "__main__":
    command_line.run(main)

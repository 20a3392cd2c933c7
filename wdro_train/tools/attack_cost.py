"""How much longer does an attack take than its passes through the network?

`python -m wdro_train.tools.attack_cost CKPT`, or the keys of `evaluate.py` for a network that was trained elsewhere.
The limit is what the same numbers of forward and backward passes take in a bare loop; what an attack takes beyond it is
arithmetic of its own. Attack and limit are timed in turn, and the ratio is the median over the turns, so that other
programs of the machine disturb both alike.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from wdro_train.attacks import WFGSM, WPGD, BoundaryAttack, MinimalDistance
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.nearest_flip_search import STEP_SIZES, NearestFlipSearch, SearchEffort, minus_soft_margin
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.losses import ce
from wdro_train.tools import command_line
from wdro_train.tools.loading import split_on_device
from wdro_train.tools.network_arguments import add_network_arguments, add_threat_arguments, given_network
from wdro_train.utils import tables
from wdro_train.utils.devices import synchronize
from wdro_train.utils.pass_counter import PassCounter

Job = Callable[[nn.Module, Tensor, Tensor], Any]


@dataclass(frozen=True)
class AttackCost:
    """What an attack costs on a batch.

    Attributes:
        name: Of the attack.
        passes: Pairs of a forward and a backward pass for each image.
        ratio: Its time, in units of the time of its passes alone.
    """

    name: str
    passes: float
    ratio: float


def attacks(ball: WassersteinBall, steps: int) -> Iterator[tuple[str, Job]]:
    """Name and attack.

    Args:
        ball: The threat; PGD uses its radius image by image.
        steps: Gradient steps of the iterative ones.
    """
    threat: dict[str, Any] = {"p": ball.p, "norm": ball.norm, "delta": ball.delta}
    if ball.p > 1:
        yield "W-FGSM", WFGSM(**threat)
        yield "W-PGD, last iterate", WPGD(**threat, steps=steps)
        yield "W-PGD, cheapest flips", WPGD(**threat, steps=steps, random_start=False, keep="cheapest")
    yield "PGD", WPGD(**threat | {"p": inf}, steps=steps)
    yield "worst case", BoundaryAttack(**threat, steps=steps)
    if ball.norm in (1, 2, inf):
        yield "minimal distance", MinimalDistance(norm=ball.norm, steps=steps)
        yield "minimal distance, steps alone", lambda model, x, y: steps_alone(ball.ground, steps, model, x, y)


def steps_alone(ground: GroundNorm, steps: int, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """The steps of `MinimalDistance` without bisections and polish.

    Args:
        ground: The norm.
        steps: How many.
        model: The network, in evaluation mode.
        x: Images [B, C, H, W].
        y: Labels [B].
    """
    with attack_mode(model):
        effort = SearchEffort(steps, 1, 0, STEP_SIZES[ground.order], None)
        NearestFlipSearch(ground, effort, model, x, y).descend(minus_soft_margin, y, x)


def passes_alone(model: nn.Module, x: Tensor, y: Tensor, pairs: int, forwards: int) -> None:
    """The lower limit: forward passes with a backward pass to the images, then forward passes alone.

    Args:
        model: The network, in evaluation mode.
        x: Images [B, C, H, W].
        y: Labels [B].
        pairs: Forward passes with a backward pass.
        forwards: Forward passes without one.
    """
    for _ in range(pairs):
        images = x.detach().requires_grad_()
        torch.autograd.grad(ce(model(images), y).sum(), images)
    with torch.no_grad():
        for _ in range(forwards):
            model(x)


def cost(
    name: str, attack: Job, model: nn.Module, x: Tensor, y: Tensor, repeats: int, *, processor: bool = False
) -> AttackCost:
    """Time an attack and its limit in turn.

    Args:
        name: Of the attack.
        attack: Takes network, images and labels.
        model: The network, in evaluation mode.
        x: Images [B, C, H, W].
        y: Labels [B].
        repeats: Turns.
        processor: Compare the processor time of all threads instead of the time on the clock.
    """
    clock = time.process_time if processor else time.perf_counter
    with PassCounter(model) as counted:
        attack(model, x, y)
    # As many images as the attack passes, in whole batches: what is rounded off is put right in the time.
    pairs, forwards = max(1, round(counted.backward / len(x))), round((counted.forward - counted.backward) / len(x))
    scale = (counted.forward + counted.backward) / len(x) / (2 * pairs + forwards)
    ratios = []
    for _ in range(repeats):
        alone = _seconds(clock, x.device, lambda: passes_alone(model, x, y, pairs, forwards))
        ratios.append(_seconds(clock, x.device, lambda: attack(model, x, y)) / (scale * alone))
    return AttackCost(name, counted.pairs / len(x), statistics.median(ratios))


def _seconds(clock: Callable[[], float], device: torch.device, work: Callable[[], Any]) -> float:
    synchronize(device)
    start = clock()
    work()
    synchronize(device)
    return clock() - start


def main(arguments: list[str] | None = None) -> list[AttackCost]:
    """Run the command.

    Args:
        arguments: The command line; None for that of the process.
    """
    parser = command_line.parser("attack_cost", __doc__)
    add_threat_arguments(parser)
    parser.add_argument(
        "--steps", type=command_line.whole(1), default=10, help="Iterative attacks take this many steps, by default 10."
    )
    parser.add_argument(
        "--images", type=command_line.whole(1), default=1000, help="So many images in one batch, by default 1000."
    )
    parser.add_argument(
        "--repeats", type=command_line.whole(1), default=15, help="So many turns of attack and limit, by default 15."
    )
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="Compare processor time instead of the time on the clock, on a CPU that has other work to do.",
    )
    add_network_arguments(parser)
    given = parser.parse_intermixed_args(arguments)
    network, written = given_network(given)
    ball = network.threat(p=given.p, norm=given.norm, delta=given.delta)
    x, y = split_on_device(network, "test", given.images)
    network.model.eval()
    kinds = list(attacks(ball, given.steps))
    found = [
        cost(name, attack, network.model, x, y, given.repeats, processor=given.processor_time)
        for name, attack in track(kinds, description="timing")
    ]
    tables.show(
        f"{network.path}: attacks on {len(y)} images, W_{ball.p:g}, l_{ball.norm:g}, radius {written(ball.delta)}, "
        f"{given.steps} steps, {torch.get_num_threads()} threads",
        ["attack", "passes", "times the limit"],
        [[one.name, f"{one.passes:.2f}", f"{one.ratio:.2f}"] for one in found],
        "passes: pairs of a forward and a backward pass an image; the limit: as many passes in a bare loop",
    )
    return found


if __name__ == "__main__":
    command_line.run(main)

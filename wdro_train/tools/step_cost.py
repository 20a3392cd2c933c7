"""What does a training step cost, method by method?

`python -m wdro_train.tools.step_cost CKPT`. Passes are counted at the network, in pairs of a forward and a backward
pass of an image; times are medians, relative to PGD-AT with the same number of steps, and images a second are those of
the medians. `--precision`, `--channels-last` and `--compile` compute as `train.py` does with the keys of these names.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from wdro_train.attacks import KLPGD, WFGSM, WPGD, WRM, Attack, BoundaryAttack, Fixed, Lagrangian
from wdro_train.evaluation.typed_radii import trained_radii
from wdro_train.objectives import (
    Adversarial,
    ChecksNetwork,
    CrownIbp,
    FirstOrderPenalty,
    Ibp,
    LipschitzDual,
    Mart,
    Objective,
    OneRadius,
    Sabr,
    Standard,
    StatisticallyRobust,
    WTrades,
)
from wdro_train.theory.ball import WassersteinBall
from wdro_train.tools import command_line
from wdro_train.tools.loading import add_loading_options, chosen_network, split_on_device
from wdro_train.training.callbacks import NetworkExecution
from wdro_train.utils import tables
from wdro_train.utils.devices import synchronize
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter
from wdro_train.utils.written import WrittenRadii

# Steps on the batch before the timing, so that an attack with a state stops where it would in training.
_ADAPTATION = 200


def methods(ball: WassersteinBall, steps: int) -> Iterator[tuple[str, Attack | None, Objective]]:
    """Name, attack and objective of every method; times are relative to the first.

    Args:
        ball: The threat; PGD-AT and what is compared with it use its radius image by image.
        steps: Steps of the iterative attacks.
    """
    pointwise: dict[str, Any] = {"p": math.inf, "norm": ball.norm, "delta": ball.delta}
    threat = pointwise | {"p": ball.p}
    yield f"PGD-AT, {steps} steps", WPGD(**pointwise, steps=steps, random_start=True), Adversarial()
    yield "standard", None, Standard()
    # A step of 1.25 radii from a random start is FGSM-RS (Wong, Rice, Kolter 2020, arXiv 2001.03994).
    yield "one step, random start", WPGD(**pointwise, steps=1, step_size=1.25, random_start=True), Adversarial()
    yield f"TRADES, {steps} steps", KLPGD(**pointwise, steps=steps), WTrades()
    yield f"MART, {steps} steps", WPGD(**pointwise, steps=steps, random_start=True), Mart()
    yield f"SR-WDRO, {steps} steps", WPGD(**pointwise, steps=steps, random_start=True), StatisticallyRobust()
    yield f"worst case, {steps} steps", BoundaryAttack(**threat, steps=steps), Adversarial()
    if ball.p > 1:
        yield "W-FGSM", WFGSM(**threat), Adversarial()
        yield f"W-PGD, {steps} steps", WPGD(**threat, steps=steps, random_start=True), Adversarial()
        yield "first-order penalty", None, FirstOrderPenalty(**threat)
    if math.isinf(ball.norm):
        yield "IBP", None, Ibp(**threat)
        yield "IBP, one radius", None, Ibp(**threat, radius=OneRadius(Fixed(ball.delta or 1.0)))
        yield "CROWN-IBP", None, CrownIbp(**threat)
        yield "SABR, 4 steps", None, Sabr(**threat, steps=4)
    if ball.norm == 2 and ball.delta > 0:
        yield "lipschitz dual", None, LipschitzDual(**threat)
    if 1 < ball.p < math.inf:
        yield f"Lagrangian, {steps} steps", Lagrangian(**threat, steps=steps), Adversarial()
        yield f"WRM, {steps} steps", WRM(**threat, steps=steps), Adversarial()


def covers(objective: Objective, model: nn.Module, x: Tensor) -> bool:
    """Whether a network can be trained on an objective.

    Args:
        objective: Any one.
        model: The network.
        x: Images [B, C, H, W].
    """
    try:
        if isinstance(objective, ChecksNetwork):
            objective.check_network(model, x[:1])
    except UserError:
        return False
    return True


def step(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack | None, objective: Objective, *, bfloat16: bool = False
) -> None:
    """Do the work of one training step, up to the gradient of the weights.

    Args:
        model: The network.
        x: Images [B, C, H, W].
        y: Labels [B].
        attack: Perturbs the images; None for a method without attack.
        objective: Gives the training loss.
        bfloat16: Passes are autocast to bfloat16.
    """
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        x_adv = x if attack is None else attack(model, x, y, generator=torch.Generator(x.device).manual_seed(0)).x_adv
        loss = objective(model, x, x_adv, y).loss
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)


def count(model: nn.Module, x: Tensor, y: Tensor, attack: Attack | None, objective: Objective) -> float:
    """The number of pairs of a forward and a backward pass for each image of one training step.

    Args:
        model: The network.
        x: Images [B, C, H, W].
        y: Labels [B].
        attack: Perturbs the images; None for a method without attack.
        objective: Gives the training loss.
    """
    with PassCounter(model) as passes:
        step(model, x, y, attack, objective)
    return passes.pairs / len(x)


def main(arguments: list[str] | None = None) -> list[tuple[str, float, float]]:
    """Run the command.

    Args:
        arguments: The command line; None for that of the process.

    Returns:
        Name, passes and relative time of each method.
    """
    parser = command_line.parser("step_cost", __doc__)
    command_line.add_checkpoint(parser)
    parser.add_argument(
        "--steps", type=command_line.whole(1), default=8, help="Iterative attacks take this many steps, by default 8."
    )
    parser.add_argument(
        "--batch", type=command_line.whole(1), default=128, help="A step has this many images, by default 128."
    )
    parser.add_argument(
        "--repeats",
        type=command_line.whole(1),
        default=15,
        help="So many steps of each method are timed, by default 15.",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help="Besides PGD-AT only methods whose names begin so are timed, such as standard,worst.",
    )
    parser.add_argument(
        "--precision",
        choices=("32-true", "bf16-mixed"),
        default="32-true",
        help="Passes are computed in this precision, by default 32-true.",
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="Convolutions keep the channels innermost in memory."
    )
    parser.add_argument("--compile", action="store_true", help="The network goes through torch.compile.")
    add_loading_options(parser)
    given = parser.parse_args(arguments)
    network = chosen_network(given, given.checkpoint)
    ball = network.threat()
    x, y = split_on_device(network, "train", given.batch)
    kinds = [kind for kind in methods(ball, given.steps) if covers(kind[2], network.model, x)]
    beginnings = tuple(filter(None, given.only.split(",")))
    if beginnings:
        names = [name for name, *_ in kinds]
        for one in beginnings:
            if not any(name.startswith(one) for name in names):
                raise UserError(f"--only {one} is the beginning of no method here; choose from {', '.join(names)}")
        kinds = [kind for index, kind in enumerate(kinds) if index == 0 or kind[0].startswith(beginnings)]
    twice = [kind for kind in kinds if given.compile and isinstance(kind[2], FirstOrderPenalty)]
    for name, *_ in twice:
        print(f"{name} is left out: it differentiates twice, which compiled networks do not")
    kinds = [kind for kind in kinds if kind not in twice]
    for _, attack, _ in kinds:
        if isinstance(attack, BoundaryAttack | Lagrangian):  # they learn their radius or price from the network
            for _ in range(_ADAPTATION):
                attack(network.model, x, y)
    pairs = [count(network.model, x, y, attack, objective) for _, attack, objective in kinds]
    execution = NetworkExecution(given.channels_last, given.compile)
    execution.lay_out(network.model)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=given.precision == "bf16-mixed"):
        execution.compile_network(network.model, x)
    times: list[list[float]] = [[] for _ in kinds]
    for turn in track(range(given.repeats + 1), description="timing"):
        for spent, (_, attack, objective) in zip(times, kinds, strict=True):
            synchronize(x.device)
            start = time.perf_counter()
            step(network.model, x, y, attack, objective, bfloat16=given.precision == "bf16-mixed")
            synchronize(x.device)
            if turn:  # the first one compiles, and chooses kernels
                spent.append(time.perf_counter() - start)
    medians = [statistics.median(spent) for spent in times]
    found = [(kind[0], passes, median / medians[0]) for kind, passes, median in zip(kinds, pairs, medians, strict=True)]
    how = [
        given.precision,
        *(["channels_last"] if given.channels_last else []),
        *(["compile"] if given.compile else []),
    ]
    radius = WrittenRadii(None, trained_radii(network.config))(ball.delta)
    tables.show(
        f"{network.path}: a training step on {len(y)} images, W_{ball.p:g}, l_{ball.norm:g}, radius {radius}, "
        f"{', '.join(how)}, {x.device.type}",
        ["method", "passes", "relative", "time", "images/s"],
        [
            [name, f"{passes:.2f}", f"{passes / found[0][1]:.2f}", f"{ratio:.2f}", f"{len(y) / median:.0f}"]
            for (name, passes, ratio), median in zip(found, medians, strict=True)
        ],
        "passes: pairs of a forward and a backward pass an image; relative and time: PGD-AT is 1",
    )
    return found


if __name__ == "__main__":
    command_line.run(main, default_float32=True)

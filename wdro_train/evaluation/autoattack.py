"""Attacks of other authors at p = inf, to hold ours against: AutoAttack and its parts (pip extra `peers`)."""

from __future__ import annotations

import importlib
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.evaluation.engine import Engine, Stage
from wdro_train.evaluation.piece_store import Arrays
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import move
from wdro_train.theory.ground_norm import per_image
from wdro_train.theory.losses import correct
from wdro_train.utils.errors import UserError
from wdro_train.utils.versions import package_version

_ROUNDING = 1e-6  # of the radius: more than a float32 displacement, and the radius itself, lose by rounding
_STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]
_NAMES = {1.0: "L1", 2.0: "L2", math.inf: "Linf"}


@dataclass(frozen=True, eq=False)
class ReferenceResult:
    """What a reference attack left of a set.

    Attributes:
        name: The attack, for the report.
        ball: Its threat; p = inf, as the attack looks at each image by itself.
        accuracy: Accuracy that it leaves on the images it was run on, in [0, 1].
        flips: Distance of each image's flip, inf for none, shape [n].
        seconds: Computing time of all batches.
    """

    name: str
    ball: WassersteinBall
    accuracy: float
    flips: NDArray[np.float64]
    seconds: float


def run_reference_attack(
    engine: Engine, ball: WassersteinBall, *, attacks: list[str] | None, name: str, batches: int | None = None
) -> ReferenceResult:
    """Run AutoAttack, or some of its parts, at the ball's radius on every image.

    Args:
        engine: The set and the network.
        ball: Gives norm and radius; its order does not matter.
        attacks: Parts by their names in pyautoattack, such as `square`; None for the standard version.
        name: How the report calls it.
        batches: Run on the first so many batches of the set only; None for all.

    Raises:
        UserError: The package is not installed.
    """
    require("pyautoattack")
    parts = attacks if attacks is not None else _parts(_classes(engine))
    if attacks is None and parts != _STANDARD:
        name = f"{name} ({', '.join(parts)})"

    def work(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        started = time.perf_counter()
        with attack_mode(engine.model):
            x_adv = autoattack(engine.model, x, y, ball, seed=engine.seed, attacks=attacks)
            with torch.no_grad():
                flipped = ~correct(forward(engine.model, x_adv), y)
                wrong = ~correct(forward(engine.model, x), y)
        distances = torch.where(flipped, ball.ground.distances(x_adv - x), math.inf)
        distances = torch.where(wrong, 0.0, distances)
        seconds = time.perf_counter() - started
        return {"distances": distances.cpu().numpy(), "seconds": np.full(1, seconds)}

    settings = {"ball": ball, "attacks": attacks, "version": package_version("pyautoattack")}
    limited = engine if batches is None else engine.first(batches)
    joined = limited.run(Stage(f"peer_{name}", settings, work), ("distances", "seconds"))
    distances = np.asarray(joined["distances"])
    return ReferenceResult(
        name=name,
        ball=replace(ball, p=math.inf),
        accuracy=float((distances > ball.delta).mean()),
        flips=distances,
        seconds=float(joined["seconds"].sum()),
    )


def autoattack(
    model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, *, seed: int = 0, attacks: list[str] | None = None
) -> Tensor:
    """Perturb images by AutoAttack (Croce and Hein 2020, arXiv 2003.01690); call inside `attack_mode`.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images, shape [B, C, H, W].
        y: Labels, shape [B].
        ball: Gives norm and radius.
        seed: Seeds its random starts.
        attacks: Parts by their names in pyautoattack; None for the standard version. With fewer than four classes
            that has no attack on DLR, whose targeted form compares four logits; with fewer than ten it targets
            every other class once.

    Returns:
        Images in [0, 1] and in the ball, same shape; where nothing was found the clean ones. The package rounds its
        images out of the ball by up to 1e-5 of the radius; they are brought back, and are flips only if they still are.
    """
    kinds = {"version": "standard"} if attacks is None else {"version": "custom", "attacks": attacks}
    logits = partial(forward, model)
    attack = require("pyautoattack").AutoAttack(
        logits, norm=_NAMES[ball.norm], eps=ball.delta, seed=seed, device=str(x.device), **kinds
    )
    with torch.no_grad():
        classes = logits(x[:1]).shape[1]
    if attacks is None:
        attack.attacks_to_run = _parts(classes)
    for part in (attack.apgd_targeted, attack.fab):
        part.n_target_classes = min(part.n_target_classes, classes - 1)
    found: Tensor = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
    return brought_inside(ball, x, found.to(x))


def brought_inside(ball: WassersteinBall, x: Tensor, points: Tensor) -> Tensor:
    """Points that other programs call inside the ball and the box, brought inside by the rounding they are off.

    Args:
        ball: Gives norm and radius.
        x: Images in [0, 1], shape [B, ...].
        points: Near the ball around each, same shape.

    Returns:
        Images in [0, 1], same shape, with ||x' - x||_s <= delta; points that are inside are left as they are.
    """
    points = points.clamp(0, 1)
    u = points - x
    distances = ball.ground.distances(u)
    inside = move(x, ball.ground.shrink(u, distances, torch.full_like(distances, (1 - _ROUNDING) * ball.delta)))
    return torch.where(per_image(distances > ball.delta, x).bool(), inside, points)


def _classes(engine: Engine) -> int:
    x, _ = next(iter(engine.batches))
    with attack_mode(engine.model), torch.no_grad():
        return forward(engine.model, x[:1].to(engine.device)).shape[1]


def _parts(classes: int) -> list[str]:
    """What the standard version of AutoAttack consists of, as far as there are classes for it."""
    return [part for part in _STANDARD if classes > 3 or part != "apgd-t"]


def require(package: str) -> Any:
    """A package that only comparisons need.

    Args:
        package: `foolbox` or `pyautoattack`.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package} is not installed; run pip install -e '.[peers]'") from None

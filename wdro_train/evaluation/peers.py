"""Reference attacks at p = inf from the package pyautoattack (extra `peers`)."""

from __future__ import annotations

import importlib
import math
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wdro_train.attacks.base import attack_mode, forward
from wdro_train.errors import UserError
from wdro_train.evaluation.engine import Engine, Stage
from wdro_train.evaluation.identity import package_version
from wdro_train.evaluation.store import Arrays
from wdro_train.losses import correct
from wdro_train.threat import WassersteinBall

_ROUNDING = 1e-5  # of float32 images: what the attack calls inside the ball is inside
_NAMES = {1.0: "L1", 2.0: "L2", math.inf: "Linf"}


def run_peer(
    engine: Engine, ball: WassersteinBall, *, attacks: list[str] | None, name: str, batches: int | None = None
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """AutoAttack, or some of its parts, at the ball's radius.

    Args:
        engine: The set and the network.
        ball: Gives norm and radius.
        attacks: Parts by their names in pyautoattack, such as `square`; None for the standard version.
        name: For the report.
        batches: First so many batches of the set only; None for all.

    Returns:
        Row of the report's `peers`, and the distance of each image's flip (inf for none), shape [n].

    Raises:
        UserError: The package is not installed.
    """
    require("pyautoattack")

    def work(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        started = time.perf_counter()
        with attack_mode(engine.model):
            x_adv = autoattack(engine.model, x, y, ball, seed=engine.seed, attacks=attacks)
            with torch.no_grad():
                flipped = ~correct(forward(engine.model, x_adv), y)
                wrong = ~correct(forward(engine.model, x), y)
        distances = ball.distances(x_adv - x)
        within = distances <= ball.delta * (1 + _ROUNDING)
        distances = torch.where(flipped & within, distances.clamp(max=ball.delta), math.inf)
        distances = torch.where(wrong, 0.0, distances)
        seconds = time.perf_counter() - started
        return {"distances": distances.cpu().numpy(), "seconds": np.full(1, seconds)}

    settings = {"ball": ball, "attacks": attacks, "version": package_version("pyautoattack")}
    limited = engine if batches is None else engine.first(batches)
    joined = limited.run(Stage(f"peer_{name}", settings, work), ("distances", "seconds"))
    distances = np.asarray(joined["distances"])
    row = {
        "name": name,
        "norm": ball.norm,
        "delta": ball.delta,
        "p": math.inf,
        "images": len(distances),
        "accuracy": float(np.isinf(distances).mean()),
        "seconds": float(joined["seconds"].sum()),
    }
    return row, distances


def autoattack(
    model: nn.Module, x: Tensor, y: Tensor, ball: WassersteinBall, *, seed: int = 0, attacks: list[str] | None = None
) -> Tensor:
    """AutoAttack (Croce and Hein 2020) at the ball's radius; call inside `attack_mode`.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images, shape [B, C, H, W].
        y: Labels, shape [B].
        ball: Gives norm and radius.
        seed: Of its random starts.
        attacks: Parts by their names in pyautoattack; None for the standard version.

    Returns:
        Images in [0, 1], same shape; where nothing was found the clean ones.
    """
    kinds = {"version": "standard"} if attacks is None else {"version": "custom", "attacks": attacks}
    attack = require("pyautoattack").AutoAttack(
        model, norm=_NAMES[ball.norm], eps=ball.delta, seed=seed, device=str(x.device), **kinds
    )
    found: Tensor = attack.run_standard_evaluation(x, y, batch_size=len(x))[0]
    return found.clamp(0, 1).to(x)


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

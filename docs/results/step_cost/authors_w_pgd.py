"""W-PGD of the paper's authors beside ours: the rows of the table in `step_cost.md`, as JSON.

    git clone https://github.com/JanObloj/W-DRO-Adversarial-Methods
    python docs/results/step_cost/authors_w_pgd.py CKPT W-DRO-Adversarial-Methods/src

Accuracies are in per cent, on the first 1,000 test images; seconds are of the processor, passes pairs of a forward and
a backward pass of an image.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from wdro_train.attacks import WPGD
from wdro_train.config.resolvers import register_resolvers
from wdro_train.evaluation.networks import load_network
from wdro_train.theory.losses import correct
from wdro_train.tools.loading import split_on_device
from wdro_train.utils.pass_counter import PassCounter

IMAGES = 1000
OURS: dict[str, dict[str, Any]] = {
    "ours": {"steps": 50, "keep": "cheapest"},
    "ours_10": {"steps": 10, "keep": "cheapest"},
    "ours_16_nearest": {"steps": 16, "step_size": 3.0, "keep": "nearest"},
}
BALLS: list[tuple[float, float, float]] = [(2, math.inf, 0.1), (2, math.inf, 0.025), (2, 2.0, 1.0)]
BALLS += [(math.inf, norm, delta) for _, norm, delta in BALLS]


def measured(model: nn.Module, attack: Callable[[], float]) -> dict[str, float]:
    """Accuracy left by an attack, its passes an image and its seconds."""
    with PassCounter(model) as passes:
        start = time.process_time()
        left = attack()
        seconds = time.process_time() - start
    return {"accuracy": round(100 * left, 2), "passes": passes.pairs / IMAGES, "seconds": round(seconds, 2)}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("source", help="the folder `src` of the authors' repository")
    given = parser.parse_args()
    # Their attack asks their module of data, which downloads, for the size of a batch alone.
    sys.modules["data"] = SimpleNamespace(BATCH_SIZE=32)  # type: ignore[assignment]
    sys.path.insert(0, given.source)
    attacker, losses = (__import__(name) for name in ("attacker", "loss_fns"))
    kinds = {"ce": losses.CE(), "dlr": losses.DLR(), "redlr": losses.ReDLR()}
    register_resolvers()
    network = load_network(given.checkpoint, device=torch.device("cpu"), allowed=frozenset())
    model = network.model.eval()
    x, y = split_on_device(network, "test", IMAGES)

    def theirs(ball: dict[str, Any], loss: str) -> float:
        q, s = (1 if math.isinf(ball[key]) else 2 for key in ("p", "norm"))
        attack = attacker.wpgd(q, s, ball["delta"], kinds[loss], x, y)
        return float(attack.attack(model, verbose=False)["acc_min"])

    def ours(ball: dict[str, Any], loss: str, **settings: Any) -> float:
        attack = WPGD(**ball, loss=loss, random_start=False, **settings)
        with torch.no_grad():
            return float(correct(model(attack(model, x, y).x_adv), y).double().mean())

    for p, norm, delta in BALLS:
        for loss in kinds if p == 2 else ("ce",):
            ball: dict[str, Any] = {"p": p, "norm": norm, "delta": delta}
            row = {"theirs": measured(model, partial(theirs, ball, loss))}
            for name, settings in OURS.items():
                row[name] = measured(model, partial(ours, ball, loss, **settings))
            named = {key: str(value) if math.isinf(value) else value for key, value in ball.items()}
            print(json.dumps(named | {"loss": loss} | row), flush=True)


if __name__ == "__main__":
    main()

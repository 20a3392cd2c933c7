"""Does the adversarial accuracy that training reported hold under other and longer attacks?

`python -m wdro_train.tools.gradient_masking CKPT`. A network that hides its gradients looks robust to the attack it was
trained and validated with. This runs 50 steps of W-PGD with CE and with ReDLR, from the clean images and from random
starts, and pointwise PGD at the same radius, on the checkpoint's validation set as one distribution, and compares the
accuracies with the `val/adv_acc` that training reported.
"""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import torch

from wdro_train.attacks import WPGD
from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.evaluation.networks import JudgedNetwork
from wdro_train.theory.losses import correct
from wdro_train.tools import command_line
from wdro_train.tools.loading import BATCH_SIZE, add_loading_options, chosen_network, split_on_device
from wdro_train.utils import tables
from wdro_train.utils.errors import UserError

AttackRow = tuple[str, float]


def masking_rows(network: JudgedNetwork, steps: int = 50, limit: int | None = None, seed: int = 0) -> list[AttackRow]:
    """The accuracy on the validation set under every attack of the check.

    Args:
        network: The network, from a checkpoint that `train.py` wrote.
        steps: Steps of each attack.
        limit: First so many validation images only; None for all.
        seed: Seeds the random starts.

    Returns:
        Attack and accuracy in [0, 1].
    """
    x, y = split_on_device(network, "val", limit)
    ball = network.threat()
    rows = []
    for p, loss, random_start in product(dict.fromkeys((ball.p, math.inf)), ("ce", "redlr"), (False, True)):
        for keep in ("best", "cheapest") if math.isfinite(p) else ("best",):
            attack = WPGD(
                p=p,
                norm=ball.norm,
                delta=ball.delta,
                loss=loss,
                steps=steps,
                random_start=random_start,
                keep=keep,
                batch_size=BATCH_SIZE,
            )
            found = attack(network.model, x, y, generator=torch.Generator(x.device).manual_seed(seed))
            assert found.adv_logits is not None
            start = "random start" if random_start else "clean start"
            name = f"W-PGD-{steps} {keep}, W_{p:g}" if math.isfinite(p) else f"PGD-{steps}, pointwise"
            rows.append((f"{name}, {loss}, {start}", correct(found.adv_logits, y).double().mean().item()))
    return rows


def main(arguments: list[str] | None = None) -> list[AttackRow]:
    """Run the command.

    Args:
        arguments: The command line; None for that of the process.

    Returns:
        Attack and accuracy in [0, 1].
    """
    parser = command_line.parser("gradient_masking", __doc__)
    parser.add_argument("ckpt", type=command_line.checkpoint, help="The checkpoint, as train.py writes it.")
    parser.add_argument(
        "--steps", type=command_line.whole(1), default=50, help="Each attack takes this many steps, by default 50."
    )
    parser.add_argument(
        "--limit", type=command_line.whole(1), help="Only the first so many validation images are attacked."
    )
    add_loading_options(parser)
    given = parser.parse_args(arguments)
    reported = _reported(Path(given.ckpt).resolve().parent.parent / METRICS_FILE)
    rows = masking_rows(chosen_network(given, given.ckpt), given.steps, given.limit)
    body = [["val/adv_acc as training reported it", tables.four_decimals(reported), ""]] if reported is not None else []
    for name, accuracy in rows:
        # What training reported is of the whole set.
        change = "" if reported is None or given.limit is not None else f"{100 * (accuracy - reported):+.1f}"
        body.append([name, tables.four_decimals(accuracy), change])
    which = "the validation set" if given.limit is None else f"the first {given.limit} validation images"
    tables.show(f"accuracy left on {which}", ["attack", "accuracy", "points"], body)
    return rows


def _reported(metrics: Path) -> float | None:
    """The accuracy under attack that training reported; None if it reported another figure, or none.

    Raises:
        UserError: The file is damaged.
    """
    if not metrics.is_file():
        return None
    try:
        values = json.loads(metrics.read_text("utf-8"))["val"]
        return float(values["adv_acc"]) if "adv_acc" in values else None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{metrics} is damaged ({type(error).__name__}: {error}); remove it") from error


if __name__ == "__main__":
    command_line.run(main)

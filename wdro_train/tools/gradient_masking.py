"""`python -m wdro_train.tools.gradient_masking CKPT`: does `val/adv_acc` hold under other and longer attacks?

A network that hides its gradients looks robust to the attack it was trained and validated with. This runs 50 steps of
W-PGD with CE and with ReDLR, from the clean images and from random starts, and pointwise PGD at the same radius, on
the checkpoint's validation set as one distribution, and compares with what training reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from itertools import product
from pathlib import Path

import torch

from wdro_train.attacks import WPGD
from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.evaluation.networks import load_arrays, load_subject
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.tools import command_line
from wdro_train.utils import tables
from wdro_train.utils.devices import add_device, resolve_device
from wdro_train.utils.trusted import add_allow_option


def masking_rows(
    path: str,
    steps: int = 50,
    limit: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    allowed: Collection[str] = (),
) -> list[tuple[str, float]]:
    """Accuracy under every attack of the check.

    Args:
        path: A checkpoint written by `train.py`.
        steps: Steps of each attack.
        limit: First so many validation images only; None for all.
        seed: Seeds the random starts.
        allowed: Constructors that the checkpoint may ask for besides those of this package.
        device: Where to compute.

    Returns:
        Attack and accuracy in [0, 1].
    """
    subject = load_subject(path, device=device, allowed=allowed)
    arrays = load_arrays(subject.config, "val", limit)
    x, y = arrays.batch(torch.arange(len(arrays.labels))).to(device), arrays.labels.to(device)
    ball = WassersteinBall(**{key: subject.config["attack"][key] for key in ("p", "norm", "delta")})
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
                batch_size=512,
            )
            found = attack(subject.model, x, y, generator=torch.Generator(device).manual_seed(seed))
            assert found.adv_logits is not None
            start = "random start" if random_start else "clean start"
            name = f"W-PGD-{steps} {keep}, W_{p:g}" if math.isfinite(p) else f"PGD-{steps}, pointwise"
            rows.append((f"{name}, {loss}, {start}", correct(found.adv_logits, y).double().mean().item()))
    return rows


def main() -> None:
    """The command."""
    parser = command_line.Parser(
        prog="python -m wdro_train.tools.gradient_masking", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("ckpt", type=command_line.checkpoint, help="checkpoint written by train.py")
    parser.add_argument("--steps", type=command_line.whole(1), default=50, help="steps of each attack")
    parser.add_argument(
        "--limit", type=command_line.whole(1), default=None, help="first so many validation images only"
    )
    add_allow_option(parser)
    add_device(parser)
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    rows = masking_rows(arguments.ckpt, arguments.steps, arguments.limit, device=device, allowed=arguments.allow)
    metrics = Path(arguments.ckpt).resolve().parent.parent / METRICS_FILE
    reported = json.loads(metrics.read_text())["val"]["adv_acc"] if metrics.is_file() else None
    body = [["val/adv_acc as training reported it", tables.number(reported), ""]] if reported is not None else []
    for name, accuracy in rows:
        change = "" if reported is None else f"{100 * (accuracy - reported):+.1f}"
        body.append([name, tables.number(accuracy), change])
    tables.show("accuracy left on the validation set", ["attack", "accuracy", "points"], body)


if __name__ == "__main__":
    command_line.run(main)

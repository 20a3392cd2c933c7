"""How much accuracy does each effort of `evaluate.py` leave, in how many passes, beside AutoAttack?

`python -m wdro_train.tools.compare_efforts [--efforts quick,auto] [--autoattack] KEY=VALUE...`. The keys are those of
`evaluate.py`: they choose the network, the images and the ball. AutoAttack aims at the radius and is about p = inf.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning as L
import torch
from omegaconf import DictConfig

from wdro_train.attacks import MinimalDistance
from wdro_train.cli.arguments import comma_list
from wdro_train.config.writable import refuse_unwritable
from wdro_train.evaluation.array_batches import ArrayBatches
from wdro_train.evaluation.autoattack import require, run_reference_attack
from wdro_train.evaluation.choices import chosen_networks
from wdro_train.evaluation.effort import chosen_effort
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.networks import JudgedNetwork, load_arrays
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import command_line
from wdro_train.tools.network_arguments import composed
from wdro_train.utils import tables
from wdro_train.utils.devices import synchronize
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

HEAD = ("effort", "accuracy left", "passes an image", "rounds", "ended by", "seconds")


@dataclass(frozen=True)
class Row:
    """What an effort left.

    Attributes:
        effort: Its name, or AutoAttack's.
        accuracy: Worst-case accuracy in the ball; of AutoAttack at p = inf.
        passes: Passes an image, (forward + backward) / 2, counted at the network.
        rounds: Number of rounds; 0 for AutoAttack.
        capped: Whether the budget ended the search.
        seconds: Wall-clock time.
    """

    effort: str
    accuracy: float
    passes: float
    rounds: int
    capped: bool
    seconds: float


def compare(
    cfg: DictConfig, network: JudgedNetwork, efforts: Sequence[str], ball: WassersteinBall, *, with_autoattack: bool
) -> list[Row]:
    """Search with each effort, and then by AutoAttack; nothing that one finds helps another.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.
        network: The network.
        efforts: Names of efforts.
        ball: The threat.
        with_autoattack: Whether to run AutoAttack, too.
    """
    batches = ArrayBatches(load_arrays(network.config, cfg.split, cfg.limit), cfg.batch_size)
    images = sum(len(y) for _, y in batches)
    device = next((parameter.device for parameter in network.model.parameters()), torch.device("cpu"))
    rows = []
    for name in [*efforts, *(["AutoAttack"] if with_autoattack else [])]:
        with tempfile.TemporaryDirectory() as folder, PassCounter(network.model) as passes:
            store = PieceStore(folder, {})
            engine = Engine(network.model, batches, store, device, cfg.seed)
            started = time.perf_counter()
            if name == "AutoAttack":
                flips = run_reference_attack(engine, ball, attacks=None, name=name).flips
                accuracy, rounds, capped = RobustnessCurve(flips).accuracy(ball.delta, math.inf), 0, False
            else:
                chosen = chosen_effort(name)
                attack = MinimalDistance(norm=ball.norm, **chosen.search, batch_size=cfg.batch_size)
                found = chosen.effort(engine, attack, ball)
                accuracy, rounds, capped = found.rounds[-1].accuracy, len(found.rounds), found.capped
            synchronize(device)
            seconds = time.perf_counter() - started
            store.close()
        rows.append(Row(name, accuracy, passes.pairs / images, rounds, capped, seconds))
    return rows


def cells(row: Row) -> list[str]:
    """A row of the table."""
    ended = "" if row.rounds < 2 else "budget" if row.capped else "convergence"
    rounds = str(row.rounds) if row.rounds else ""
    accuracy = tables.rounded_up(100 * row.accuracy, 2)
    return [row.effort, accuracy, f"{row.passes:.0f}", rounds, ended, f"{row.seconds:.1f}"]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the command.

    Args:
        arguments: The command line; None for that of the process.

    Returns:
        What every effort left of the last network.
    """
    parser = command_line.parser("compare_efforts", __doc__ or "")
    parser.add_argument("--efforts", default="quick,auto", help="Names of efforts, by default quick,auto.")
    parser.add_argument("--autoattack", action="store_true", help="Run AutoAttack at the radius, too, which is slow.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Append the rows to this file, a line a network.")
    parser.add_argument(
        "--config-dir", type=command_line.folder, help="A folder of groups of your own, as for evaluate.py."
    )
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="Keys of evaluate.py.")
    given = parser.parse_args(arguments)
    efforts = [name for name in given.efforts.split(",") if name]
    for name in efforts:
        chosen_effort(name)
    if given.autoattack:
        require("pyautoattack")
    elif not efforts:
        raise UserError("--efforts is empty, so there is nothing to compare; give names, such as quick,auto")
    if given.json is not None:
        refuse_unwritable("--json", str(given.json.parent))
    cfg = composed(comma_list(given.keys, "ckpt_path"), given.config_dir)
    fabric = L.Fabric(accelerator=cfg.accelerator, devices=1)
    rows: list[Row] = []
    for network in chosen_networks(cfg, fabric):
        ball = network.threat(**{key: cfg.attack[key] for key in ("p", "norm", "delta")})
        rows = compare(cfg, network, efforts, ball, with_autoattack=given.autoattack)
        tables.show(
            f"{network.name}: W_{ball.p:g}, l_{ball.norm:g}, radius {ball.delta:.4g}, {cfg.split} images, "
            f"limit {cfg.limit}, seed {cfg.seed}",
            list(HEAD),
            [cells(row) for row in rows],
        )
        if given.json is not None:
            threat = {"p": str(ball.p), "norm": str(ball.norm), "delta": ball.delta, "limit": cfg.limit}
            given.json.parent.mkdir(parents=True, exist_ok=True)
            with given.json.open("a") as file:
                file.write(json.dumps({"network": network.name, **threat, "rows": [asdict(r) for r in rows]}) + "\n")
    return rows


if __name__ == "__main__":
    command_line.run(main)

"""One evaluation, from configuration to tables, figures and `report.json`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning as L
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.network_check import check_network
from wdro_train.data import ImageSet, describe_sample
from wdro_train.evaluation import warning_signs
from wdro_train.evaluation.autoattack import run_peer
from wdro_train.evaluation.certified_curve import certified_curve, make_certificate
from wdro_train.evaluation.engine import Engine, find_distances
from wdro_train.evaluation.first_order import poster_rows, with_worst_case
from wdro_train.evaluation.identity import identity
from wdro_train.evaluation.networks import Subject, foreign_subject, load_arrays, load_subject, newest_checkpoint
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.report import build as reports
from wdro_train.evaluation.report.image_pairs import Pairs, flipped_pairs
from wdro_train.evaluation.report.publish import publish
from wdro_train.evaluation.report.published import published
from wdro_train.models import ExpectedLogits
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils import tables
from wdro_train.utils.distributed import default_reducer
from wdro_train.utils.numbers import parse_number

_LOOKED_AT = 16  # images of each network before the first is judged


class ArrayBatches:
    """Batches of images in [0, 1], read when they are needed.

    Args:
        arrays: The set.
        batch_size: Images a batch.
    """

    def __init__(self, arrays: ImageSet, batch_size: int) -> None:
        self.arrays, self.batch_size = arrays, batch_size

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self.arrays.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """In the order of the set."""
        for start in range(0, len(self.arrays.labels), self.batch_size):
            rows = torch.arange(start, min(start + self.batch_size, len(self.arrays.labels)))
            yield self.arrays.batch(rows), self.arrays.labels[rows]


def evaluate(cfg: DictConfig) -> float:
    """Judge one checkpoint, or compare several, on a whole set as one distribution.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.

    Returns:
        Worst-case accuracy of the (first) checkpoint in its ball.
    """
    fabric = L.Fabric(accelerator=cfg.accelerator, devices=cfg.devices, strategy="auto" if cfg.devices == 1 else "ddp")
    fabric.launch()
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    report = reports.header({str(k): v for k, v in config.items()})
    subjects = _subjects(cfg, fabric)
    ball = _threat(cfg, subjects[0])
    report |= {"threat": {"p": ball.p, "norm": ball.norm, "delta": ball.delta}, "split": cfg.split}
    for subject in subjects:
        x, y = next(iter(ArrayBatches(load_arrays(subject.config, cfg.split, cfg.limit), _LOOKED_AT)))
        check_network(subject.model, x.to(fabric.device), y.to(fabric.device))
    stores, pictures = [], []
    report["models"] = []
    for subject in subjects:
        network = subject.model if cfg.expectation == 1 else ExpectedLogits(subject.model, cfg.expectation)
        stores.append(_store(cfg, network, fabric))
        model, pairs = _judge(cfg, subject, network, ball, stores[-1], fabric.device)
        report["models"].append(model)
        pictures.append(pairs)
    reports.tell_apart(report["models"])
    fabric.barrier()
    if fabric.is_global_zero:
        made = publish(report, pictures, Path(cfg.run_dir), cfg.get("logger"))
    for store in stores:
        store.discard()
    if fabric.is_global_zero:
        _present(report, made)
    return float(report["models"][0]["worst_case"]["accuracy"])


def _subjects(cfg: DictConfig, fabric: L.Fabric) -> list[Subject]:
    """The checkpoints given; or the model given, as it is; or the newest run's best checkpoint."""
    if cfg.ckpt_path is None and cfg.get("model") is not None:
        return [foreign_subject(cfg, fabric.device)]
    chosen = cfg.ckpt_path if cfg.ckpt_path is not None else newest_checkpoint()
    if cfg.ckpt_path is None:
        console = Console(quiet=not fabric.is_global_zero)
        console.print(f"no ckpt_path given: judging the newest run's best checkpoint, {chosen}", soft_wrap=True)
    paths = [chosen] if isinstance(chosen, str) else list(chosen)
    return [load_subject(path, model=cfg.get("model"), data=cfg.get("data"), device=fabric.device) for path in paths]


def _store(cfg: DictConfig, network: nn.Module, fabric: L.Fabric) -> PieceStore:
    """Where the finished pieces of one network are kept; all ranks open it before any goes on.

    With `resume=false` it is empty: what a killed run left is removed, unless another evaluation is using it.
    """
    key = identity(network, seed=cfg.seed, device=fabric.device)
    if not cfg.resume and fabric.is_global_zero and not PieceStore(cfg.store, key).discard():
        key["apart"] = uuid4().hex
    store = PieceStore(cfg.store, fabric.broadcast(key))
    fabric.barrier()
    return store


def _judge(
    cfg: DictConfig,
    subject: Subject,
    network: nn.Module,
    ball: WassersteinBall,
    store: PieceStore,
    device: torch.device,
) -> tuple[Any, Pairs | None]:
    """The block of one model, and the images that its worst case moves first (on the first rank)."""
    arrays = load_arrays(subject.config, cfg.split, cfg.limit)
    batches = ArrayBatches(arrays, cfg.batch_size)
    orders = [parse_number(p, "curve.p") for p in cfg.curve.p]
    deltas = _radii(cfg.curve.deltas, list(np.linspace(0, 2 * ball.delta, 41)))
    reducer = default_reducer()
    with _bars(quiet=reducer.rank > 0) as bars:
        engine = Engine(
            network,
            batches,
            store,
            device,
            cfg.seed,
            reducer,
            progress=_Tracker(bars, len(batches), cfg),
        )
        attack = MinimalDistance(norm=ball.norm, **cfg.distances, batch_size=cfg.batch_size)
        found = find_distances(engine, attack)
        pool, alone = [found.distances], [found.distances]
        poster: list[dict[str, Any]] = []
        if cfg.poster is not None:
            chosen = [ball.p] if cfg.poster.p is None else [parse_number(p, "poster.p") for p in cfg.poster.p]
            first_order = [p for p in chosen if p > 1]
            if first_order:
                poster = poster_rows(
                    engine,
                    norm=ball.norm,
                    losses=list(cfg.poster.losses),
                    orders=first_order,
                    deltas=_radii(cfg.poster.deltas, [ball.delta / 4, ball.delta / 2, ball.delta]),
                    steps=cfg.poster.pgd_steps,
                    box=cfg.poster.box,
                    flips=pool,
                )
            else:
                bars.console.print(
                    "no first-order values and no W-PGD: under W_1 the first-order worst case is not unique; "
                    "poster.p=[2] shows those of another order"
                )
        certified, certificate = None, None
        if cfg.certificate is not None and cfg.certificate.method is not None:
            settings = {key: cfg.certificate[key] for key in ("method", "sigma", "samples", "alpha")}
            sure = make_certificate(**settings, norm=ball.norm, images=len(arrays.labels), batch_size=cfg.batch_size)
            certified, certificate = certified_curve(engine, sure, cfg.certificate.method)
        alarms = [warning_signs.randomness(engine.model, next(iter(batches))[0].to(device))]
        peers: list[dict[str, Any]] = []
        threat = RobustnessCurve.pool(pool)
        if cfg.peers.autoattack:
            peer, flips = run_peer(engine, ball, attacks=None, name="AutoAttack")
            peers.append(peer)
            alone.append(flips)
            alarms.append(warning_signs.peer_wins(threat, peer))
        if cfg.peers.square:
            peer, flips = run_peer(engine, ball, attacks=["square"], name="Square", batches=1)
            peers.append(peer)
            alarms.append(warning_signs.black_box_wins(threat, flips.tolist(), ball.delta))
            alone.append(np.concatenate([flips, np.full(len(threat) - len(flips), np.inf)]))
    curve = RobustnessCurve.pool([*pool, *alone])
    rows = with_worst_case(poster, curve)
    alarms += [
        warning_signs.zero_gradients(found),
        warning_signs.nonfinite_gradients(found),
        warning_signs.never_flipped(found),
        warning_signs.cheaper_elsewhere(found, curve, ball.p, ball.delta),
        warning_signs.stronger_does_worse(rows),
        warning_signs.bound_above_ratio(rows),
    ]
    band = curve.band(cfg.curve.alpha, cfg.curve.sided)
    worst_case = reports.worst_case_block(curve, found, ball.p, ball.delta, cfg.pictures)
    movers = [mover["index"] for mover in worst_case["movers"]]
    pairs = flipped_pairs(engine, attack, movers) if reducer.rank == 0 else None
    block = {
        "name": subject.name,
        "checkpoint": str(subject.path),
        "trained_with": subject.config,
        "images": len(curve),
        "sample": describe_sample(arrays, cfg.limit),
        "clean_accuracy": curve.clean_accuracy,
        "norm": ball.norm,
        "distances": {
            "attack": {"name": "MinimalDistance", **OmegaConf.to_container(cfg.distances)},  # type: ignore[dict-item]
            "values": curve.distances.tolist(),
            "median_of_correct": _median(curve),
            "histogram": reports.histogram(curve.distances),
        },
        "band": {"alpha": cfg.curve.alpha, "sided": band.sided, "width": band.width, "level": band.level},
        "curves": reports.curve_rows(
            curve, orders, deltas, band, alone=RobustnessCurve.pool(alone), certified=certified
        ),
        "worst_case": worst_case,
        "poster": rows,
        "certificate": certificate,
        "peers": peers,
        "published": published(subject.name, ball.norm, ball.delta) if _is_cifar10(subject) else [],
        "warnings": [alarm for alarm in alarms if alarm is not None],
    }
    return block, pairs


def _threat(cfg: DictConfig, subject: Subject) -> WassersteinBall:
    """The checkpoint's threat, with what the command line changes."""
    trained = subject.config["attack"]
    chosen = {key: trained[key] if cfg.attack[key] is None else cfg.attack[key] for key in ("p", "norm", "delta")}
    return WassersteinBall(**chosen)


def _is_cifar10(subject: Subject) -> bool:
    return bool(subject.config["data"].get("name") == "CIFAR10")


def _radii(given: Any, default: list[float]) -> list[float]:
    return default if given is None else [parse_number(value, "deltas") for value in given]


def _median(curve: RobustnessCurve) -> float:
    positive = curve.distances[curve.distances > 0]
    return float(np.median(positive)) if positive.size else math.nan


def _bars(quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, transient=True, disable=quiet)


class _Tracker:
    """One progress bar a stage."""

    def __init__(self, bars: Progress, batches: int, cfg: DictConfig) -> None:
        self.bars, self.batches, self.cfg = bars, batches, cfg
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int) -> None:
        if stage not in self.tasks:
            total = self.cfg.poster.pgd_steps if stage.startswith("pgd_") else self.batches
            self.tasks[stage] = self.bars.add_task(stage.split("_of")[0][:40], total=total)
        self.bars.update(self.tasks[stage], completed=done)


def _pgd(model: dict[str, Any], row: dict[str, Any]) -> float:
    """Our W-PGD with ReDLR in the ball of a published figure; NaN if it was not run."""
    same = (p for p in model["poster"] if (p["loss"], p["p"], p["delta"]) == ("redlr", row["p"], row["delta"]))
    return next((float(p["pgd_acc"]) for p in same), math.nan)


def _upper_end(band: dict[str, Any]) -> str:
    """What an attack's accuracy says about the distribution of the images."""
    if band["sided"] == "lower":
        return ""
    return f"; on the distribution at most {band['width']:.4f} more, at {100 * band['level']:g} %"


def _lower_end(band: dict[str, Any], level: float) -> str:
    """What a certified accuracy says about the distribution; a certificate that may fail lowers the band's level."""
    if band["sided"] == "upper":
        return ""
    return f"; on the distribution at most {band['width']:.4f} less, at {100 * (band['level'] + level - 1):g} %"


def _present(report: dict[str, Any], made: list[tuple[str, str]]) -> None:
    """Tables for the terminal."""
    threat = report["threat"]
    console = Console()
    for model in report["models"]:
        worst = model["worst_case"]
        console.print(
            f"\n{model['name']}: {model['images']} {report['split']} images ({model['sample']}) as one distribution, "
            f"l_{model['norm']:g} norm, clean accuracy {model['clean_accuracy']:.4f}",
            soft_wrap=True,
        )
        wanted = [0.25 * threat["delta"], 0.5 * threat["delta"], threat["delta"], 2 * threat["delta"]]
        curve = RobustnessCurve(model["distances"]["values"])
        tables.show(
            f"worst-case accuracy (attack, upper bound){_upper_end(model['band'])}",
            ["ball", *(f"delta {delta:.4g}" for delta in wanted)],
            [
                [f"W_{row['p']:g}", *(tables.number(a) for a in curve.accuracies(wanted, row["p"]))]
                for row in model["curves"]
            ],
        )
        if model["certificate"] is not None:
            sure = model["certificate"]
            lower = RobustnessCurve(sure["radii"])
            tables.show(
                f"certified worst-case accuracy of {sure['about']} ({sure['method']}, level {sure['level']:g})"
                f"{_lower_end(model['band'], sure['level'])}",
                ["ball", *(f"delta {delta:.4g}" for delta in wanted)],
                [
                    [f"W_{row['p']:g}", *(tables.number(a) for a in lower.accuracies(wanted, row["p"]))]
                    for row in model["curves"]
                ],
            )
        console.print(
            f"W_{worst['p']:g}, radius {worst['delta']:.4g}: the worst case moves {worst['images_moved']} "
            f"correct images, up to distance {worst['marginal_distance']:.4g}",
            soft_wrap=True,
        )
        if model["poster"]:
            keys = [key for key in model["poster"][0] if key not in ("loss", "p", "norm", "delta")]
            for loss in dict.fromkeys(row["loss"] for row in model["poster"]):
                rows = [row for row in model["poster"] if row["loss"] == loss]
                tables.show(
                    f"first-order values and W-PGD, {loss} (ratio_lower* are asymptotic)",
                    ["", *(f"W_{row['p']:g} {row['delta']:.4g}" for row in rows)],
                    [[key, *(tables.number(row[key]) for row in rows)] for key in keys],
                )
        if model["published"]:
            tables.show(
                f"published beside ours, radius {threat['delta']:.4g}",
                ["ball", "published", "ours, worst case", "ours, W-PGD ReDLR", "source"],
                [
                    [
                        f"W_{row['p']:g}",
                        tables.number(row["accuracy"]) + (f" +-{row['error']:g}" if row["error"] else ""),
                        tables.number(curve.accuracy(row["delta"], row["p"])),
                        tables.number(_pgd(model, row)),
                        row["source"],
                    ]
                    for row in model["published"]
                ],
            )
        for peer in model["peers"]:
            console.print(
                f"{peer['name']} at p = inf, radius {peer['delta']:.4g}: leaves {peer['accuracy']:.4f} of "
                f"{peer['images']} images, in {peer['seconds']:.1f} s",
                soft_wrap=True,
            )
        for warning in model["warnings"]:
            console.print(f"warning: {warning['text']}", soft_wrap=True)
    for what, where in made:
        console.print(f"{what:<9} {where}", soft_wrap=True)

"""Judge one network on one set of images: measure, and collect the evidence."""

from __future__ import annotations

from dataclasses import replace

import torch
from omegaconf import DictConfig
from torch import nn

from wdro_train.attacks import MinimalDistance
from wdro_train.data import ImageSet, describe_sample
from wdro_train.evaluation.array_batches import ArrayBatches
from wdro_train.evaluation.effort import chosen_effort
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.measurements import chosen_measurements, concluded
from wdro_train.evaluation.news import news, worst_case
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.progress_bars import progress_display
from wdro_train.evaluation.report.image_pairs import Pairs, flipped_pairs
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.distributed import default_reducer
from wdro_train.utils.written import WrittenRadii


def measure_network(
    cfg: DictConfig,
    name: str,
    model: nn.Module,
    arrays: ImageSet,
    ball: WassersteinBall,
    store: PieceStore,
    device: torch.device,
    fast: nn.Module | None = None,
    written: WrittenRadii | None = None,
) -> tuple[NetworkEvidence, Pairs | None]:
    """Measure everything that the configuration asks for, and print what each measurement has found as it is made.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.
        name: Of the network.
        model: Maps images in [0, 1] to logits, on `device`.
        arrays: The images.
        ball: The threat.
        store: Keeps finished pieces.
        device: Where to compute.
        fast: The network whose gradients searches for flips follow; None for `model`.
        written: How sentences write radii; None for decimals.

    Returns:
        The evidence, and the `pictures` images that the worst case moves first, with their flips. Only the first rank
        gets these; None where there are none.
    """
    reducer = default_reducer()
    chosen = chosen_effort(**cfg.distances)
    attack = MinimalDistance(norm=ball.norm, **chosen.search, batch_size=cfg.batch_size)
    batches = ArrayBatches(arrays, cfg.batch_size)
    with progress_display(len(batches), quiet=reducer.rank > 0) as progress:
        measurements = chosen_measurements(cfg, ball, len(arrays.labels), progress.tell)
        engine = Engine(model, batches, store, device, cfg.seed, reducer, progress=progress, fast=fast)
        found = chosen.effort(engine, attack, ball)
        passes = (("distances", engine.ledger.total),)
        sample, texts = describe_sample(arrays, cfg.limit), written or WrittenRadii()
        evidence = NetworkEvidence(ball, sample, engine.images_digest, found, passes=passes, written=texts)
        progress.tell(worst_case(name, evidence))
        for measurement in measurements:
            before, spent = evidence, engine.ledger.total
            evidence = measurement(engine, evidence)
            took = (measurement.name, engine.ledger.total - spent)
            evidence = replace(evidence, passes=(*evidence.passes, took))
            for line in news(before, evidence):
                progress.tell(line)
    evidence = concluded(evidence, measurements)
    if reducer.rank > 0:
        return evidence, None
    return evidence, flipped_pairs(
        engine, found, ball.ground, [mover.index for mover in evidence.moved[: cfg.pictures]]
    )

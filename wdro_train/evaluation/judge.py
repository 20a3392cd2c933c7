"""Judge one network on one set of images: measure, and collect the evidence."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from wdro_train.attacks import MinimalDistance
from wdro_train.data import ImageSet, describe_sample
from wdro_train.evaluation.array_batches import ArrayBatches
from wdro_train.evaluation.effort import chosen_effort
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.measurements import chosen_measurements, concluded
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.progress_bars import ProgressBars
from wdro_train.evaluation.report.image_pairs import Pairs, flipped_pairs
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.distributed import default_reducer


def measure_network(
    cfg: DictConfig, model: nn.Module, arrays: ImageSet, ball: WassersteinBall, store: PieceStore, device: torch.device
) -> tuple[NetworkEvidence, Pairs | None]:
    """Measure everything that the configuration asks for.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.
        model: Maps images in [0, 1] to logits, on `device`.
        arrays: The images.
        ball: The threat.
        store: Keeps finished pieces.
        device: Where to compute.

    Returns:
        The evidence, and the `pictures` images that the worst case moves first, with their flips. Only the first rank
        gets these; None where there are none.
    """
    reducer = default_reducer()
    console = Console(quiet=reducer.rank > 0)
    measurements = chosen_measurements(cfg, ball, len(arrays.labels), lambda text: console.print(text, soft_wrap=True))
    chosen = chosen_effort(**cfg.distances)
    attack = MinimalDistance(norm=ball.norm, **chosen.search, batch_size=cfg.batch_size)
    batches = ArrayBatches(arrays, cfg.batch_size)
    steps = 0 if cfg.poster is None else cfg.poster.pgd_steps
    with ProgressBars(len(batches), steps, quiet=reducer.rank > 0) as bars:
        engine = Engine(model, batches, store, device, cfg.seed, reducer, progress=bars)
        found = chosen.effort(engine, attack, ball)
        evidence = NetworkEvidence(ball, describe_sample(arrays, cfg.limit), engine.images_digest, found)
        for measurement in measurements:
            evidence = measurement(engine, evidence)
    evidence = concluded(evidence)
    if reducer.rank > 0:
        return evidence, None
    return evidence, flipped_pairs(
        engine, found, ball.ground, [mover.index for mover in evidence.moved[: cfg.pictures]]
    )

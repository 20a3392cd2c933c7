"""One evaluation, from configuration to tables, figures and `report.json`."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from wdro_train.attacks.network_check import PROBED_IMAGES, check_network
from wdro_train.data import ImageSet
from wdro_train.evaluation.array_batches import ArrayBatches
from wdro_train.evaluation.certified_curve import require_covered
from wdro_train.evaluation.choices import chosen_arithmetic, chosen_grid, chosen_networks, open_store
from wdro_train.evaluation.effort import chosen_effort
from wdro_train.evaluation.judge import measure_network
from wdro_train.evaluation.judged_images import JudgedImages
from wdro_train.evaluation.measurements import chosen_certificate
from wdro_train.evaluation.networks import JudgedNetwork
from wdro_train.evaluation.report import build, terminal
from wdro_train.evaluation.report.publish import publish
from wdro_train.evaluation.typed_radii import typed_radii
from wdro_train.models import ExpectedLogits


def evaluate(cfg: DictConfig) -> float:
    """Judge one checkpoint, or compare several, on a whole set as one distribution.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.

    Returns:
        Worst-case accuracy of the (first) checkpoint in its ball.
    """
    fabric = L.Fabric(accelerator=cfg.accelerator, devices=cfg.devices, strategy="auto" if cfg.devices == 1 else "ddp")
    fabric.launch()
    made_by = build.header(OmegaConf.to_container(cfg, resolve=True))
    networks = chosen_networks(cfg, fabric)
    ball = networks[0].threat(**{key: cfg.attack[key] for key in ("p", "norm", "delta")})
    grid = chosen_grid(cfg, ball)
    written = typed_radii(made_by["config"], [network.config for network in networks], ball.delta)
    arithmetic = chosen_arithmetic(cfg)
    models, pictures, stores, found, judged = [], [], [], [], []
    with JudgedImages(cfg, fabric) as images:
        for network in networks:
            x = _check(network, images.beginning(network), fabric)
            model = network.model if cfg.expectation == 1 else ExpectedLogits(network.model, cfg.expectation)
            certificate = chosen_certificate(cfg, ball, len(x))
            if certificate is not None:
                require_covered(certificate, model, x)
            judged.append((network, model, arithmetic.network(model, x)))
        for network, model, fast in judged:
            stores.append(open_store(cfg, model, fabric))
            arrays = images.whole(network)
            evidence, pairs = measure_network(
                cfg, network.name, model, arrays, ball, stores[-1], fabric.device, fast, written
            )
            attack = chosen_effort(**cfg.distances).described(ball) | arithmetic.described()
            models.append(
                build.model(network, evidence, grid, attack=attack, movers=cfg.pictures, networks=len(networks))
            )
            pictures.append(pairs)
            found.append(evidence)
    report = build.report(made_by, ball, cfg.split, models, found, grid.alpha)
    fabric.barrier()
    if fabric.is_global_zero:
        made = publish(report, pictures, Path(cfg.run_dir), cfg.get("logger"))
    for store in stores:
        store.discard()
    if fabric.is_global_zero:
        terminal.show(report, made)
    return found[0].worst_case.accuracy


def _check(network: JudgedNetwork, arrays: ImageSet, fabric: L.Fabric) -> Tensor:
    """Look at some images and logits of every network before the first is judged, which may take hours.

    Returns:
        These images, on the device.

    Raises:
        UserError: Images or logits that break the contract of `wdro_train.utils.contract`.
    """
    x, y = next(iter(ArrayBatches(arrays, PROBED_IMAGES)))
    x = x.to(fabric.device)
    check_network(network.model, x, y.to(fabric.device))
    return x

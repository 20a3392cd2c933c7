"""What the configuration of `evaluate.py` chooses: the networks, the grid of the curve, and the store of pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import lightning as L
import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from wdro_train.attacks.search_network import SearchArithmetic
from wdro_train.evaluation.identity import identity
from wdro_train.evaluation.labels import labelled
from wdro_train.evaluation.networks import (
    JudgedNetwork,
    load_network,
    network_trained_elsewhere,
    newest_checkpoint,
)
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.band import Sided
from wdro_train.utils.numbers import parse_number
from wdro_train.utils.renamed import FORMER_POSTER

DEFAULT_RADII = 41  # of the curve, from 0 to twice the threat's: every twentieth of the threat's is among them


@dataclass(frozen=True)
class CurveGrid:
    """Where the robustness curve is reported, and with which confidence band.

    Attributes:
        orders: Wasserstein orders p.
        deltas: Radii.
        alpha: Error probability of the band.
        sided: The kind of the band; see `Band`.
    """

    orders: tuple[float, ...]
    deltas: tuple[float, ...]
    alpha: float
    sided: Sided


def chosen_networks(cfg: DictConfig, fabric: L.Fabric) -> list[JudgedNetwork]:
    """The checkpoints given; or the model given, as it is; or the newest run's best checkpoint.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.
        fabric: Gives the device, and says which rank may print.
    """
    given = cfg.get("model")
    trusted = given is not None and set(given) == {"_target_"} and cfg.get("data") is None  # of the newest run
    if cfg.ckpt_path is None and given is not None and not trusted:
        return labelled([network_trained_elsewhere(cfg, fabric.device)], cfg.labels)
    chosen = cfg.ckpt_path if cfg.ckpt_path is not None else newest_checkpoint()
    if cfg.ckpt_path is None:
        console = Console(quiet=not fabric.is_global_zero)
        console.print(f"no ckpt_path given: judging the newest run's best checkpoint, {chosen}", soft_wrap=True)
    paths = [chosen] if isinstance(chosen, str) else list(chosen)
    parts = {"model": given, "data": cfg.get("data"), "device": fabric.device}
    return labelled([load_network(path, **parts) for path in paths], cfg.labels)


def chosen_grid(cfg: DictConfig, ball: WassersteinBall) -> CurveGrid:
    """The orders and radii of the curve; by default up to twice the radius of the threat.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.
        ball: The threat.

    Raises:
        UserError: A number that cannot be read.
    """
    radii = np.linspace(0, 2 * ball.delta, DEFAULT_RADII).tolist()
    return CurveGrid(
        orders=tuple(parsed(cfg.curve.p, "curve.p", [])),
        deltas=tuple(parsed(cfg.curve.deltas, "deltas", radii)),
        alpha=cfg.curve.alpha,
        sided=cfg.curve.sided,
    )


def chosen_first_order(cfg: DictConfig) -> dict[str, Any] | None:
    """The settings of the first-order rows, as `first_order` has them; None if there are to be none.

    What is given under the former name `poster` means what it meant: the whole grid at full effort.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.
    """
    if cfg.get("first_order") is None or cfg.poster is None:
        return None
    settings: dict[str, Any] = OmegaConf.to_container(cfg.first_order, resolve=True)  # type: ignore[assignment]
    given = {FORMER_POSTER.get(key, key): value for key, value in cfg.poster.items() if value is not None}
    return settings if not given else settings | {"shares": [0.25, 0.5, 1], "passes": None} | given


def chosen_arithmetic(cfg: DictConfig) -> SearchArithmetic:
    """In which arithmetic searches for flips compute.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.
    """
    return SearchArithmetic(cfg.precision, cfg.channels_last, cfg.compile)


def open_store(cfg: DictConfig, model: nn.Module, fabric: L.Fabric) -> PieceStore:
    """Open the folder where the finished pieces of one network are kept; all ranks open it before any goes on.

    With `resume=false` it is empty: what a killed run left is removed, unless another evaluation is using it.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.
        model: The network that is judged, with everything around it.
        fabric: Joins the ranks.
    """
    key = identity(model, seed=cfg.seed, device=fabric.device, arithmetic=chosen_arithmetic(cfg))
    if not cfg.resume and fabric.is_global_zero and not PieceStore(cfg.store, key).discard():
        key["apart"] = uuid4().hex
    store = PieceStore(cfg.store, fabric.broadcast(key))
    fabric.barrier()
    return store


def parsed(given: Sequence[Any] | None, name: str, default: list[float]) -> list[float]:
    """The numbers of a list in the configuration, or the default.

    Args:
        given: As written, such as `[1, 8/255, inf]`; None for the default.
        name: Name of the key, for the error message.
        default: What null stands for.

    Raises:
        UserError: A number that cannot be read.
    """
    return default if given is None else [parse_number(value, name) for value in given]

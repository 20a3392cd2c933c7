"""One evaluation, from configuration to table and `report.json`."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from wdro_train import tables
from wdro_train.errors import UserError
from wdro_train.evaluation.subject import Subject, load_images, load_subject
from wdro_train.evaluation.whole_set import first_order, projected_gradient
from wdro_train.threat import WassersteinBall

REPORT_FILE = "report.json"


def evaluate(cfg: DictConfig) -> float:
    """Judge a checkpoint on a whole set as one distribution.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.

    Returns:
        The lowest accuracy any of the attacks left.
    """
    if OmegaConf.is_missing(cfg, "ckpt_path"):
        raise UserError("no checkpoint given; run python evaluate.py ckpt_path=runs/.../checkpoints/best.ckpt")
    device = torch.device("cuda" if cfg.accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    subject = load_subject(cfg.ckpt_path, model=cfg.get("model"), data=cfg.get("data"), device=device)
    ball = _threat(cfg, subject)
    x, y = (tensor.to(device) for tensor in load_images(subject.config, cfg.split, cfg.limit))
    losses = list(cfg.attack.losses)
    bars = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
    )
    results: dict[str, dict[str, Any]] = {}
    with bars:
        for loss in losses:
            box = cfg.attack.box
            bounds = first_order(subject.model, x, y, ball, loss=loss, box=box, batch_size=cfg.batch_size)
            results[loss] = {"w_fgsm": bounds, "w_pgd": {}}
            for keep in ("best", "cheapest"):
                task = bars.add_task(f"W-PGD {loss}, {keep}", total=cfg.attack.steps)
                result = projected_gradient(
                    subject.model,
                    x,
                    y,
                    ball,
                    loss=loss,
                    clean_acc=bounds["clean_acc"],
                    steps=cfg.attack.steps,
                    keep=keep,
                    random_start=cfg.attack.random_start,
                    box=box,
                    batch_size=cfg.batch_size,
                    generator=torch.Generator(device).manual_seed(cfg.seed),
                    progress=partial(_advance, bars, task),
                )
                results[loss]["w_pgd"][keep] = result._asdict()
    lowest = min(r["w_pgd"][keep]["adv_acc"] for r in results.values() for keep in r["w_pgd"])
    report = _report(cfg, subject, ball, len(y)) | {"lowest_accuracy": lowest, "results": results}
    folder = Path(cfg.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT_FILE).write_text(json.dumps(_defined(report), indent=2) + "\n")
    _present(report, folder)
    return float(lowest)


def _advance(bars: Progress, task: TaskID, done: int) -> None:
    bars.update(task, completed=done)


def _threat(cfg: DictConfig, subject: Subject) -> WassersteinBall:
    """The checkpoint's threat, with what the command line changes."""
    trained = subject.config["attack"]
    chosen = {key: trained[key] if cfg.attack[key] is None else cfg.attack[key] for key in ("p", "norm", "delta")}
    return WassersteinBall(**chosen).require_first_order("evaluate.py")


def _report(cfg: DictConfig, subject: Subject, ball: WassersteinBall, size: int) -> dict[str, Any]:
    """All that is needed to read and repeat the numbers."""
    packages = ("wdro-train", "torch", "torchvision", "lightning", "torchmetrics")
    return {
        "schema": 1,
        "command": " ".join(sys.argv),
        "checkpoint": str(subject.path),
        "threat": {"p": str(ball.p), "norm": str(ball.norm), "delta": ball.delta},
        "scope": "whole set as one distribution",
        "split": cfg.split,
        "images": size,
        "seed": cfg.seed,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "trained_with": subject.config,
        "versions": {name: version(name) for name in packages},
    }


def _defined(value: Any) -> Any:
    """JSON has no NaN and no infinity: undefined values become null, infinite settings a string."""
    if isinstance(value, dict):
        return {key: _defined(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_defined(entry) for entry in value]
    if isinstance(value, float) and value != value:
        return None
    return str(value) if isinstance(value, float) and abs(value) == float("inf") else value


def _present(report: dict[str, Any], folder: Path) -> None:
    threat = report["threat"]
    losses = list(report["results"])
    rows = tables.metric_rows(*(report["results"][loss]["w_fgsm"] for loss in losses))
    for keep, label in (("best", "W-PGD, best iterate"), ("cheapest", "W-PGD, cheapest flips")):
        for key in ("adv_acc", "ratio", "max_mean_loss", "spent"):
            values = [report["results"][loss]["w_pgd"][keep][key] for loss in losses]
            rows.append([f"{label}: {key}", *(tables.number(value) for value in values)])
    tables.show(
        f"W_{threat['p']} ball, radius {threat['delta']:.6g}, l_{threat['norm']} norm; "
        f"{report['images']} {report['split']} images as one distribution",
        ["metric", *losses],
        rows,
    )
    console = Console()
    console.print(f"checkpoint  {report['checkpoint']}", soft_wrap=True)
    console.print(f"report      {folder / REPORT_FILE}", soft_wrap=True)

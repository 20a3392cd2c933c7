"""Publish a report: JSON, page, summary and figures in a folder, and the same in the loggers (W&B, say)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from wdro_train.config.loggers import build_loggers, closing_wandb, offline_runs, quiet_offline_wandb
from wdro_train.evaluation.report import build as reports
from wdro_train.evaluation.report import fields, html, markdown, matplotlib_figures
from wdro_train.evaluation.report.fields import to_float
from wdro_train.evaluation.report.image_pairs import Pairs
from wdro_train.evaluation.report.schema import Report
from wdro_train.utils.files import as_json

FIGURES = "figures"
_CURVE: tuple[fields.CurveKey, ...] = ("accuracy", "upper", "certified", "certified_lower")
_NAMES_OF_A_ROW = ("loss", "p", "norm", "delta")


def publish(
    report: Report, pictures: Sequence[Pairs | None], folder: Path, loggers: Mapping[str, Any] | None = None
) -> list[tuple[str, str]]:
    """Write report, page, summary and figures, and log them.

    The report is written first, so that the numbers are safe whatever happens to the rest.

    Args:
        report: In memory or as read from `report.json`.
        pictures: One entry a model: its movers' images, or None.
        folder: Where the files go.
        loggers: The configuration group `logger`, or None.

    Returns:
        What was made and where, for the terminal.
    """
    path = reports.write(report, folder)
    content = as_json(report)
    page = html.write(content, pictures, folder)
    summary = markdown.write(content, folder)
    drawn = matplotlib_figures.write(content, pictures, folder / FIGURES)
    made = [("report", str(path)), ("page", str(page)), ("summary", str(summary)), ("figures", str(folder / FIGURES))]
    if not loggers:
        return made
    quiet_offline_wandb(loggers)
    with closing_wandb():
        built = build_loggers(loggers)
        for logger in built:
            _log(logger, content, path, page, drawn)
        return made + [("dashboard", f"wandb sync {run}") for run in offline_runs(built)]


def scalars(report: Report) -> dict[str, float]:
    """The numbers of the report's tables by name; a model's name comes first if there are several.

    Args:
        report: As `report.json` holds it.
    """
    found: dict[str, float] = {}
    for model in report["models"]:
        prefix = f"{model['name']}/" if len(report["models"]) > 1 else ""
        worst = model["worst_case"]
        values: dict[str, Any] = {
            "clean_accuracy": model["clean_accuracy"],
            "band_width": model["band"]["width"],
            "worst_case/accuracy": worst["accuracy"],
            "worst_case/spent": worst["spent"],
            "worst_case/images_moved": worst["images_moved"],
        }
        for curve in model["curves"]:
            for delta in fields.grid(report):
                ball = f"W_{to_float(curve['p']):g}/delta_{delta:g}"
                values |= {f"curve/{ball}/{key}": fields.accuracy_at(curve, delta, key) for key in _CURVE}
        ends = {key: value for key, value in model["interval"].items() if key not in _NAMES_OF_A_ROW}
        values |= {f"interval/{key}": value for key, value in ends.items()}
        for row in model["poster"]:
            ball = f"{row['loss']}/W_{to_float(row['p']):g}/delta_{row['delta']:g}"
            values |= {f"poster/{ball}/{key}": value for key, value in row.items() if key not in _NAMES_OF_A_ROW}
        found |= {prefix + key: to_float(value) for key, value in values.items() if to_float(value) == to_float(value)}
    for pair in [] if report["differences"] is None else report["differences"]["rows"]:
        ends = {key: value for key, value in pair.items() if key not in ("first", "second")}
        name = f"difference/{pair['first']} - {pair['second']}"
        found |= {f"{name}/{key}": to_float(value) for key, value in ends.items() if to_float(value) == to_float(value)}
    return found


def _curves(report: Report) -> Any:
    """Worst-case accuracy against the radius, a line an order (and model); certified ones, too."""
    from wandb.plot import line_series  # as in `_log`

    several = len(report["models"]) > 1
    lines: list[tuple[str, list[float], list[float]]] = []
    for model in report["models"]:
        for curve in model["curves"]:
            name = (f"{model['name']} " if several else "") + f"W_{to_float(curve['p']):g}"
            for values, kind in ((curve["accuracy"], ""), (curve["certified"], ", certified")):
                if values is not None:
                    lines.append((name + kind, fields.to_floats(curve["deltas"]), fields.to_floats(values)))
    return line_series(
        xs=[deltas for _, deltas, _ in lines],
        ys=[values for _, _, values in lines],
        keys=[name for name, _, _ in lines],
        title="worst-case accuracy",
        xname="delta",
    )


def _log(logger: Logger, report: Report, path: Path, page: Path, drawn: Sequence[Path]) -> None:
    """One logger: how it was made, the scalars, and where it takes them the figures and files."""
    logger.log_hyperparams({key: value for key, value in report.items() if key != "models"})
    logger.log_metrics(scalars(report), step=0)
    if isinstance(logger, WandbLogger):
        import wandb  # which takes most of a second; a report that goes into no W&B run does without

        logger.experiment.log({"robustness_curves": _curves(report)})
        for file in (one for one in drawn if one.suffix == ".png"):
            logger.log_image(f"{FIGURES}/{file.stem}", [str(file)])
        logger.experiment.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})
        artifact = wandb.Artifact("report", type="evaluation")
        for file in (path, page):
            artifact.add_file(str(file))
        logger.experiment.log_artifact(artifact)
    logger.save()
    logger.finalize("success")

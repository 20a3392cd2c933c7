"""The report as one self-contained page: nothing is fetched, strings are escaped, and it is readable on a phone."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from torch import Tensor
from torchvision.io import encode_png

from wdro_train.evaluation.report import comparison, fields, plotly_figures, search, sentences
from wdro_train.evaluation.report.image_pairs import Pairs
from wdro_train.evaluation.report.schema import ModelReport, Report
from wdro_train.utils.files import write_text

HTML_FILE = "report.html"
# What is shown of the poster's rows, and under which name.
_POSTER = (
    ("loss", "loss"),
    ("p", "p"),
    ("delta", "δ"),
    ("v0", "V(0)"),
    ("w0", "W(0)"),
    ("upsilon", "Υ"),
    ("v_first_order", "V(0) + δΥ"),
    ("v_q", "E<sub>Qδ</sub>[J]"),
    ("v_pgd", "V(δ) by W-PGD"),
    ("fgsm_acc", "accuracy under Q<sub>δ</sub>"),
    ("pgd_acc", "under W-PGD"),
    ("worst_acc", "worst case A<sub>δ</sub>"),
    ("ratio", "R"),
    ("ratio_upper", "Rᵘ"),
    ("ratio_lower_attack", "R̃ˡ asymptotic"),
    ("ratio_lower_gradient", "R̄ˡ asymptotic"),
    ("ratio_lower", "Rˡ asymptotic"),
)


def write(report: Report, pictures: Sequence[Pairs | None], folder: Path) -> Path:
    """Write `report.html`.

    Args:
        report: As `report.json` holds it.
        pictures: One entry a model: its movers' images, or None.
        folder: Where it goes.
    """
    path = folder / HTML_FILE
    write_text(path, render(report, pictures))
    return path


def render(report: Report, pictures: Sequence[Pairs | None]) -> str:
    """Render the page.

    The scripts it holds are named by their hashes in its content security policy: no other script runs, and no
    request leaves the page.

    Args:
        report: As `report.json` holds it.
        pictures: One entry a model: its movers' images, or None.
    """
    environment = Environment(
        loader=PackageLoader("wdro_train.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "short": fields.short,
        "radius": lambda value: sentences.written_radii(report)(fields.to_float(value)),
        "percent": fields.percent,
        "at_least": fields.at_least,
        "at_most": fields.at_most,
        "cell": _cell,
        "loss": fields.loss_name,
        "at": fields.accuracy_at,
        "between": lambda ends: fields.between(*ends),
        "capital": lambda text: text[:1].upper() + text[1:],
    }
    source = environment.loader.get_source(environment, "report.js")[0] if environment.loader else ""
    scripts = [_script(get_plotlyjs()), _script(source)]
    page = environment.get_template("report.html").render(
        report=report,
        models=[_model(report, model, pairs) for model, pairs in zip(report["models"], pictures, strict=True)],
        networks=comparison.side_by_side(report),
        pairs=comparison.paired_differences(report),
        curves=plotly_figures.robustness_curves(report),
        ratios=plotly_figures.ratios(report) if fields.losses(report) else [],
        grid=fields.grid(report),
        certified=fields.certificate_note(report),
        level=fields.lower_level(report),
        poster_columns=_POSTER,
        upsilon=fields.upsilon_name(report),
        config=json.dumps(report["config"], indent=1),
        policy=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
        scripts=[Markup(script) for script in scripts],
    )
    return page + "\n"


def _model(report: Report, model: ModelReport, pairs: Pairs | None) -> dict[str, Any]:
    """A model's block with its plots, pictures and side tables."""
    return {
        **model,
        "histogram_plot": plotly_figures.distance_histogram(report, model),
        "first_order_plots": plotly_figures.first_order(report, model) if model["poster"] else [],
        "headline": sentences.headline(report, model),
        "beyond": sentences.beyond_the_images(report, model),
        "moved": sentences.moved(report, model),
        "left": comparison.left(model, model["worst_case"]["p"], model["worst_case"]["delta"]),
        "passes_note": fields.passes_an_image(model),
        "search": search.convergence(model),
        "search_plot": plotly_figures.convergence(report, model),
        "search_rows": search.convergence_rows(model),
        "peer_rows": _table(model["peers"]),
        "gallery": [] if pairs is None else _gallery(model, pairs),
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """A head and rows, for rows that need not have the same keys."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return [keys, *([row.get(key) for key in keys] for row in rows)] if rows else []


def _gallery(model: ModelReport, pairs: Pairs) -> list[dict[str, Any]]:
    """The movers with their pictures; `shown` differs from the distance where another attack found a nearer flip."""
    shown = pairs.distances.tolist()
    return [
        {**mover, "clean": _data_uri(pairs.clean[k]), "adversarial": _data_uri(pairs.adversarial[k]), "shown": shown[k]}
        for k, mover in enumerate(model["worst_case"]["movers"])
    ]


def _data_uri(image: Tensor) -> str:
    """An image [C, H, W] in [0, 1] as a PNG in a data URI; grey unless it has three channels."""
    coloured = image if image.shape[0] == 3 else image.mean(0, keepdim=True)
    content = encode_png((coloured * 255).round().clamp(0, 255).to(torch.uint8).cpu()).numpy().tobytes()
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _cell(value: Any) -> str:
    """Anything plain as the text of a table's cell."""
    if value is None or isinstance(value, float) or value in ("inf", "-inf"):
        return fields.short(value)
    return value if isinstance(value, str) else json.dumps(value)


def _script(text: str) -> str:
    """A script as the browser's parser sees it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

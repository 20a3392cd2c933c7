"""The report's answer in Markdown, for a README, an issue or a paper's notes: `summary.md`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wdro_train.evaluation.report import comparison
from wdro_train.evaluation.report.schema import Report
from wdro_train.evaluation.report.sentences import beyond_the_images, headline, moved
from wdro_train.utils import tables
from wdro_train.utils.files import write_text

MARKDOWN_FILE = "summary.md"


def write(report: Report, folder: Path) -> Path:
    """Write `summary.md`.

    Args:
        report: In memory or as read from `report.json`.
        folder: Where it goes.
    """
    path = folder / MARKDOWN_FILE
    write_text(path, render(report))
    return path


def render(report: Report) -> str:
    """Headlines, the networks side by side, their differences, warnings, and the command.

    Args:
        report: In memory or as read from `report.json`.
    """
    several = len(report["models"]) > 1
    lines = ["# Distributional robustness", ""]
    for model in report["models"]:
        name = f"**{_escaped(model['name'])}:** " if several else ""
        sentences = (headline(report, model), beyond_the_images(report, model), moved(report, model))
        lines += [name + _escaped("; ".join(sentences) + "."), ""]
        lines += [f"> Warning: {_escaped(warning['text'])}\n" for warning in model["warnings"]]
    for table in (comparison.side_by_side(report), comparison.paired_differences(report)):
        if table is not None:
            lines += [_table(table), ""]
    left_out = [] if report["differences"] is None else report["differences"]["left_out"]
    lines += [f"{_escaped(sentence)}\n" for sentence in left_out]
    revision = report["git_revision"] or "not a checkout"
    lines += [
        f"`{report['command']}`, seed {report['seed']}, {report['scope']}, revision {revision}, {report['created']}."
    ]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ([_escaped(cell) for cell in row] for row in rows)
    return tables.markdown(head, body)


def _escaped(text: str) -> str:
    """Text without the marks that would end a cell or begin a tag."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())

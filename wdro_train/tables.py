"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None) -> None:
    """Print a table; the first column is text, the others are numbers."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for k, name in enumerate(header):
        table.add_column(name, justify="right" if k else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def number(value: float | None) -> str:
    """Four decimals, or a dash where there is nothing."""
    return "-" if value is None else f"{value:.4f}"


def metric_rows(*columns: Mapping[str, float]) -> list[list[str]]:
    """One row a metric over all columns, in the order of their first appearance."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    return [[key, *(number(column.get(key)) for column in columns)] for key in keys]

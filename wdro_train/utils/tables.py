"""Tables for the terminal and for Markdown files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from io import StringIO

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def show(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str | None = None, texts: int = 1
) -> None:
    """Print a table.

    Args:
        title: Stands above it.
        header: Names of the columns.
        rows: Their cells, as they are printed.
        caption: Stands below it; None for nothing.
        texts: The first so many columns hold text and are set flush left, the others numbers and flush right.
    """
    made = table(header, rows, texts)
    console = Console()
    # Where words do not fit, too wide a table is better than figures cut off.
    natural = Measurement.get(console, console.options.update(max_width=10_000), made)
    if natural.minimum > console.width:
        console.width = natural.maximum
    console.print(title, style="bold", highlight=False, soft_wrap=True, markup=False)
    console.print(made)
    if caption is not None:
        console.print(caption, style="dim", highlight=False, soft_wrap=True, markup=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Table:
    """A table, to be printed.

    Args:
        header: Names of the columns.
        rows: Their cells, as they are printed.
        texts: The first so many columns hold text and are set flush left, the others numbers and flush right.
    """
    made = Table()
    for k, name in enumerate(header):
        made.add_column(Text(name), justify="left" if k < texts else "right")
    for row in rows:
        made.add_row(*map(Text, row))  # as it is: brackets in a name are no markup
    return made


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown, one line for each row.

    Args:
        header: Names of the columns.
        rows: Their cells.
    """
    table = Table(box=box.MARKDOWN)
    for name in header:
        table.add_column(Text(name))
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=StringIO(), width=10_000)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return "\n".join(line.strip() for line in console.file.getvalue().splitlines() if line.strip()) + "\n"


def rounded_down(value: float, digits: int = 4) -> str:
    """A lower bound with so many decimals, as a number that is not above it.

    Beyond the ninth decimal, where sums over images have rounding errors of their own, it is rounded to the nearest.

    Args:
        value: The bound; NaN and infinities are written as they are.
        digits: Decimals.

    >>> rounded_down(0.29), rounded_down(0.12349), rounded_down(-0.12341)
    ('0.2900', '0.1234', '-0.1235')
    """
    return _rounded(value, digits, ROUND_FLOOR)


def rounded_up(value: float, digits: int = 4) -> str:
    """An upper bound with so many decimals, as a number that is not below it; see `rounded_down`.

    Args:
        value: The bound; NaN and infinities are written as they are.
        digits: Decimals.

    >>> rounded_up(0.1 + 0.2), rounded_up(0.12341), rounded_up(-0.00001)
    ('0.3000', '0.1235', '0.0000')
    """
    return _rounded(value, digits, ROUND_CEILING)


def _rounded(value: float, digits: int, towards: str) -> str:
    if not math.isfinite(value):
        return f"{value:g}"
    found = Decimal(f"{value:.9f}").quantize(Decimal(1).scaleb(-digits), towards)
    return f"{found + 0}"  # and not -0.0


def four_decimals(value: float | None) -> str:
    """A number as the tables show it: with four decimals, or a dash where there is none.

    Args:
        value: The number, or None.
    """
    return "-" if value is None else f"{value:.4f}"


def logged(key: str, value: float | None) -> str:
    """A logged value with four decimals: an upper bound is not rounded down, and a lower one not up.

    Radii, orders and counts are no shares, and are written as they are.

    Args:
        key: As it is logged, with or without its set, or as progress lines call it: `test/worst_acc`, `worst case`.
        value: The number, or None, for which there is a dash.

    >>> logged("p", 2.0), logged("images_moved", 205.0), logged("delta", 0.025)
    ('2', '205', '0.025')
    >>> logged("worst case", 0.42221), logged("test/certified_acc", 0.42229), logged("clean_acc", 0.42226)
    ('0.4223', '0.4222', '0.4223')
    """
    if value is None:
        return "-"
    name = key.rpartition("/")[2]
    if name in ("p", "delta", "images_moved"):
        return f"{value:g}"
    if name.startswith("worst") or name == "band":
        return rounded_up(value)
    return rounded_down(value) if name.startswith("certified") else four_decimals(value)

"""The table and the figures of a study: one row a training method, over its seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wdro_train.theory.band import band_width
from wdro_train.theory.robustness_curve import Floats
from wdro_train.tools.judged_runs import JudgedRun
from wdro_train.utils.files import replacing
from wdro_train.utils.tables import rounded_down
from wdro_train.utils.written import TypedRadius

_LEADING = 6  # methods whose curves are drawn: more lines with their bands cannot be told apart
_MARKERS, _DASHES = "os^v", ("-", "--", ":", "-.")
_COLOURS = 10  # of matplotlib's cycle, after which markers and dashes change


def by_method(results: Sequence[JudgedRun]) -> dict[str, list[JudgedRun]]:
    """The runs of each method."""
    groups: dict[str, list[JudgedRun]] = defaultdict(list)
    for result in results:
        groups[result["method"]].append(result)
    return groups


def summary(results: Sequence[JudgedRun], deltas: Sequence[float]) -> list[dict[str, str]]:
    """One row a method: mean and standard deviation over seeds, in per cent, highest worst-case accuracy first.

    Args:
        results: One a run.
        deltas: Radii of the table; columns name a `TypedRadius` as it was typed.
    """
    wide, narrow = f"{max(deltas):g}", f"{min(deltas):g}"
    written = {f"{delta:g}": _as_typed(delta) for delta in deltas}
    rows = []
    for method, group in by_method(results).items():
        row = {"training": method, "seeds": str(len(group)), "clean": _spread([r["clean"] for r in group])}
        for p, delta in (("inf", wide), ("2", wide), ("2", narrow), ("1", wide), ("1", narrow)):
            row[f"W_{p} {written[delta]}"] = _spread([r["accuracies"][p][delta] for r in group])
        row[f"R, W_2 {written[wide]}"] = _spread(
            [r["accuracies"]["2"][wide] / r["clean"] for r in group if r["clean"] > 0]
        )
        for p in ("inf", "2", "1") if any("certified" in r for r in results) else ():
            sure = [r["certified"]["accuracies"][p][wide] for r in group if "certified" in r]
            row[f"certified W_{p} {written[wide]}"] = _spread(sure, rounded_down)
        checked = [r["check"] for r in group if "check" in r]
        row[f"AutoAttack {written[wide]}"] = _spread([c["autoattack"] for c in checked])
        pushed = [r["effort"] for r in group if "effort" in r]
        row[f"W_2 {written[wide]}, more effort"] = _spread([e["more"]["2"][wide] for e in pushed])
        row["passes"] = f"{statistics.mean(r['passes'] for r in group):.1f}"
        rows.append(row)
    return sorted(rows, key=lambda row: -float(row[f"W_2 {written[wide]}"].split()[0]))


def _as_typed(delta: float) -> str:
    return delta.text if isinstance(delta, TypedRadius) else f"{delta:g}"


def certified_note(results: Sequence[JudgedRun]) -> str:
    """Where the certified figures come from, in words; empty if there are none.

    Args:
        results: One a run.
    """
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for result in results:
        part, method = result.get("certified"), result["method"]
        if part is not None and method not in found[part["method"], part["images"]]:
            found[part["method"], part["images"]].append(method)
    if not found:
        return ""
    alone = len(found) == 1
    parts = [
        f"{name} on {images} images" + ("" if alone else f" ({', '.join(methods)})")
        for (name, images), methods in found.items()
    ]
    return f"certified figures are lower bounds, rounded down, by {'; '.join(parts)}"


def images_note(results: Sequence[JudgedRun]) -> str:
    """On how many images the columns are, in words; those that are empty are left out.

    Args:
        results: One a run.
    """
    found: dict[str, dict[int, list[str]]] = {"AutoAttack": {}, "more effort": {}}
    for result in results:
        for name, part in (("AutoAttack", result.get("check")), ("more effort", result.get("effort"))):
            if part is not None and result["method"] not in (methods := found[name].setdefault(part["images"], [])):
                methods.append(result["method"])
    parts = [f"the table is on {results[0]['images']} test images"]
    for name, counts in found.items():
        if counts:
            alone = len(counts) == 1
            told = [f"{images}" + ("" if alone else f" ({', '.join(counts[images])})") for images in counts]
            parts.append(f"{name} on the first {' and '.join(told)}")
    return ", ".join(parts)


def _spread(values: list[float], written: Callable[[float, int], str] = "{:.{}f}".format) -> str:
    """Mean and standard deviation in per cent; empty where there are no values."""
    if not values:
        return ""
    percent = [100 * value for value in values]
    return written(statistics.mean(percent), 1) + (f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else "")


def figures(
    results: Sequence[JudgedRun], deltas: Sequence[float], folder: Path, shown: Sequence[str] = ()
) -> list[Path]:
    """Draw robustness curves with their confidence band, and clean accuracy against that under W_2.

    Args:
        results: One a run.
        deltas: Radii of the table.
        folder: Where the pictures go.
        shown: Methods whose curves are drawn; the leading six if empty.

    Returns:
        The files.
    """
    wide, groups = f"{max(deltas):g}", by_method(results)
    ranked = sorted(groups, key=lambda m: -float(np.mean([r["accuracies"]["2"][wide] for r in groups[m]])))
    drawn = {
        folder / "curves.png": _curves(groups, ranked, [m for m in ranked if m in shown] or ranked[:_LEADING]),
        folder / "clean_against_w2.png": _clean_against_w2(groups, ranked, max(deltas)),
    }
    for path, figure in drawn.items():
        with replacing(path, setting="--out") as file:
            figure.savefig(file, format="png", dpi=120)
    return list(drawn)


def _curves(groups: dict[str, list[JudgedRun]], ranked: list[str], shown: list[str]) -> Figure:
    """Worst-case accuracy against the radius, mean over seeds; a method has its colour and dashes by its rank."""
    columns = int(min(max(9.8 / (0.6 + 0.08 * max(map(len, shown))), 1), 3))  # of the legend; a letter is 0.08 inches
    figure = Figure(figsize=(10, 3.6 + 0.21 * math.ceil(len(shown) / columns)), layout="constrained")
    for ax, p in zip(figure.subplots(1, 2, sharey=True), ("2", "inf"), strict=True):
        for method in shown:
            group, rank = groups[method], ranked.index(method)
            values = np.mean([r["curves"][p] for r in group], axis=0)
            style = _DASHES[rank // _COLOURS % len(_DASHES)]
            (line,) = ax.plot(group[0]["deltas"], values, linestyle=style, color=f"C{rank}", label=method)
            # An attack's accuracy has no valid lower end for the population: see `Band`. Each at 95 %.
            upper = np.clip(values + band_width(group[0]["images"]), 0, 1)
            ax.fill_between(group[0]["deltas"], values, upper, alpha=0.15, color=line.get_color(), linewidth=0)
            _certified(ax, group, p, values, line.get_color())
        ax.set_title(f"W_{p}, l_{groups[ranked[0]][0]['norm']}")
        ax.set_xlabel("radius")
    sure = any("certified" in r for method in shown for r in groups[method])
    figure.axes[0].set_ylabel("worst-case accuracy" + ("" if sure else " (attack: an upper bound)"))
    if sure:
        figure.suptitle(
            "above: attack, an upper bound; dotted, below: certified; the truth lies in the area between. Pale: where "
            "the distribution's may lie beyond",
            fontsize=8,
        )
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize=9)
    return figure


def _certified(ax: Axes, group: list[JudgedRun], p: str, attacked: Floats, colour: str) -> None:
    """The certified curve of a method, the area up to the attack's, and the lower end for the population.

    The area is drawn only where both are of the same images, as otherwise it would not enclose the truth of either.
    """
    parts = [r["certified"] for r in group if "certified" in r]
    if len(parts) < len(group):
        return
    deltas, values = group[0]["deltas"], np.mean([part["curves"][p] for part in parts], axis=0)
    ax.plot(deltas, values, linestyle=(0, (1, 1)), linewidth=1.2, color=colour)
    lower = np.clip(values - band_width(parts[0]["images"]), 0, 1)
    ax.fill_between(deltas, lower, values, alpha=0.15, color=colour, linewidth=0)
    if all(part["images"] == r["images"] for part, r in zip(parts, group, strict=True)):
        ax.fill_between(deltas, values, attacked, alpha=0.35, color=colour, linewidth=0)


def _clean_against_w2(groups: dict[str, list[JudgedRun]], ranked: list[str], delta: float) -> Figure:
    """Clean accuracy against worst-case accuracy under W_2, a cross a method."""
    width = 5.5 + max(0.07 * max(map(len, ranked)) + 0.5, 2.4)  # of the axes, and of the legend beside them
    figure = Figure(figsize=(width, max(4.5, 0.17 * len(ranked) + 0.8)), layout="constrained")
    ax = figure.subplots()
    for rank, method in enumerate(ranked):
        pairs = [(r["clean"], r["accuracies"]["2"][f"{delta:g}"]) for r in groups[method]]
        (x, y), (wx, wy) = np.mean(pairs, axis=0), np.std(pairs, axis=0, ddof=1) if len(pairs) > 1 else (0.0, 0.0)
        marker = _MARKERS[rank // _COLOURS % len(_MARKERS)]
        ax.errorbar(x, y, yerr=wy, xerr=wx, fmt=marker, color=f"C{rank}", markersize=5, label=method)
    ax.set_xlabel("clean accuracy")
    ax.set_ylabel(f"worst-case accuracy, W_2 radius {_as_typed(delta)}\n(attack: an upper bound)")
    figure.legend(loc="outside right upper", fontsize=8, title="mean ± deviation over seeds")
    return figure

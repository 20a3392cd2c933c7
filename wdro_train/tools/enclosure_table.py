"""Between which accuracies does the truth lie, network by network? A table from reports of `evaluate.py`.

`python -m wdro_train.tools.enclosure_table REPORT...`. For each network of the reports the certified and the attacked
accuracy in the ball of the threat, for W_inf, W_2 and W_1 at the same radius, and the effort of both. Where the
certificate encloses nothing, it is the attacked accuracy alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from wdro_train.evaluation.report.fields import contradicted, encloses, to_float, to_floats
from wdro_train.evaluation.report.schema import ModelReport, Report
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import command_line
from wdro_train.utils.errors import UserError
from wdro_train.utils.tables import rounded_down, rounded_up

ORDERS = (math.inf, 2.0, 1.0)
HEAD = ("network", "images", "radius", "clean", *(f"W_{p:g}" for p in ORDERS), "certificate", "attack")


def enclosures(report: Report) -> list[list[str]]:
    """A row of the table for each network of a report.

    Args:
        report: The content of `report.json`.
    """
    delta = to_float(report["threat"]["delta"])
    return [_row(model, delta) for model in report["models"]]


def _row(model: ModelReport, delta: float) -> list[str]:
    distances = RobustnessCurve(to_floats(model["distances"]["values"]))
    sure = model["certificate"]
    radii = None if sure is None or not encloses(model) else RobustnessCurve(to_floats(sure["radii"]))
    accuracies = [f"{100 * distances.clean_accuracy:.2f}"]
    for p in ORDERS:
        attacked = rounded_up(100 * distances.accuracy(delta, p), 2)
        certified = "" if radii is None else f"{rounded_down(100 * radii.accuracy(delta, p), 2)} .. "
        accuracies.append(certified + attacked)
    effort = model["distances"]["attack"]
    attack = f"{effort['steps']} steps, {effort['restarts']} restarts, {effort['targets']} targets"
    name = effort.get("effort", "by hand")  # reports of earlier versions know no other
    attack = attack if name == "by hand" else f"{name}: {attack}"
    return [str(model["name"]), str(model["images"]), f"{delta:.4g}", *accuracies, _certificate(model), attack]


def _certificate(model: ModelReport) -> str:
    """What was certified by, and how many images the exact method decided; or why the accuracies are attacked ones."""
    sure = model["certificate"]
    if sure is None:
        return "none"
    if contradicted(model):
        return f"{sure['method']}, contradicted: an attack flipped an image nearer than it is certified"
    if not encloses(model):
        return f"{sure['method']}, encloses nothing: of {sure['about']}"
    exact = sure.get("exact")
    if exact is None:
        return str(sure["method"])
    return f"{sure['method']}, {exact['budget']:g} s: {exact['decided']} of {exact['asked']} decided"


def table(reports: list[Report]) -> str:
    """The table in Markdown.

    Args:
        reports: The content of each `report.json`.
    """
    rows = [list(HEAD), ["---"] * len(HEAD), *(row for report in reports for row in enclosures(report))]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Print the table."""
    parser = command_line.parser("enclosure_table", __doc__ or "")
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help="Files report.json of evaluate.py.")
    found = []
    for path in parser.parse_args().reports:
        try:
            found.append(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read as a report ({error}); give a report.json of evaluate.py"
            ) from error
        if "models" not in found[-1]:
            raise UserError(f"{path} holds no networks; give a report.json of evaluate.py")
    print(table(found))


if __name__ == "__main__":
    command_line.run(main)

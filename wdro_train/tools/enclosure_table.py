"""Between which accuracies does the truth lie, network by network? A table from reports of `evaluate.py`.

`python -m wdro_train.tools.enclosure_table REPORT...`. For each network of the reports the certified and the attacked
accuracy in the ball of the threat, for W_inf, W_2 and W_1 at the same radius, and the effort of both. Where the
certificate encloses nothing, it is the attacked accuracy alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wdro_train.evaluation.report.fields import contradicted, encloses, to_float, to_floats
from wdro_train.evaluation.report.schema import ModelReport, Report
from wdro_train.evaluation.report.sentences import written_radii
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools import command_line
from wdro_train.utils.errors import UserError
from wdro_train.utils.tables import rounded_down, rounded_up

ORDERS = (math.inf, 2.0, 1.0)
HEAD = ("network", "images", "radius", "clean", *(f"W_{p:g}" for p in ORDERS), "certificate", "attack")


@dataclass(frozen=True)
class Enclosed:
    """Between which accuracies the truth of one network lies at one radius; shares in [0, 1].

    Attributes:
        radius: Of the ball.
        clean: Clean accuracy.
        certified: By order p; None where the certificate encloses nothing, or there is none.
        attacked: By order p.
    """

    radius: float
    clean: float
    certified: Mapping[float, float] | None
    attacked: Mapping[float, float]

    def cells(self) -> list[str]:
        """The clean accuracy and the intervals, in per cent, the latter rounded outwards."""
        found = [f"{100 * self.clean:.2f}"]
        for p in ORDERS:
            attacked = rounded_up(100 * self.attacked[p], 2)
            low = "" if self.certified is None else f"{rounded_down(100 * self.certified[p], 2)} .. "
            found.append(low + attacked)
        return found


def enclosed(model: ModelReport, radius: float) -> Enclosed:
    """The intervals of one network at one radius, which need not be that of the report's threat.

    Args:
        model: The network's part of a report.
        radius: Of the balls.
    """
    distances = RobustnessCurve(to_floats(model["distances"]["values"]))
    sure = model["certificate"]
    radii = None if sure is None or not encloses(model) else RobustnessCurve(to_floats(sure["radii"]))
    return Enclosed(
        radius=radius,
        clean=distances.clean_accuracy,
        certified=None if radii is None else {p: radii.accuracy(radius, p) for p in ORDERS},
        attacked={p: distances.accuracy(radius, p) for p in ORDERS},
    )


def enclosures(report: Report) -> list[list[str]]:
    """A row of the table for each network of a report.

    Args:
        report: The content of `report.json`.
    """
    delta = to_float(report["threat"]["delta"])
    return [
        [
            str(model["name"]),
            str(model["images"]),
            written_radii(report)(delta),
            *enclosed(model, delta).cells(),
            certificate_in_words(model),
            attack_in_words(model),
        ]
        for model in report["models"]
    ]


def attack_in_words(model: ModelReport) -> str:
    """How hard the distances were searched."""
    effort = model["distances"]["attack"]
    attack = f"{effort['steps']} steps, {effort['restarts']} restarts, {effort['targets']} targets"
    name = effort.get("effort", "by hand")  # reports of earlier versions know no other
    return attack if name == "by hand" else f"{name}: {attack}"


def certificate_in_words(model: ModelReport) -> str:
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
    print(table([read_report(path) for path in parser.parse_args().reports]))


def read_report(path: Path) -> Report:
    """The content of a `report.json`.

    Args:
        path: The file.

    Raises:
        UserError: It is none.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a report ({error}); give a report.json of evaluate.py") from error
    if not isinstance(found, dict) or "models" not in found:
        raise UserError(f"{path} holds no networks; give a report.json of evaluate.py")
    report: Report = found  # type: ignore[assignment]
    return report


if __name__ == "__main__":
    command_line.run(main)

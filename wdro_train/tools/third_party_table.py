"""The table of networks that others trained: what is left at the published radius and at half of it.

The intervals are those of `enclosure_table`; this module puts published figures, effort, passes and AutoAttack beside
them, and writes the table as Markdown, CSV and JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wdro_train.evaluation.report.schema import ModelReport, Report
from wdro_train.tools.compare_efforts import Row
from wdro_train.tools.enclosure_table import ORDERS, Enclosed, attack_in_words, certificate_in_words, enclosed
from wdro_train.tools.published_networks import PublishedNetwork
from wdro_train.tools.third_party_checks import Check, checks
from wdro_train.utils import tables
from wdro_train.utils.files import write_csv, write_json, write_text
from wdro_train.utils.numbers import parse_number
from wdro_train.utils.written import WrittenRadii

HEAD = (
    *("network", "images", "radius", "clean", *(f"W_{p:g}" for p in ORDERS)),
    *("band", "certificate", "attack", "passes", "AutoAttack", "published"),
)
OURS = HEAD.index("AutoAttack")
"""The first so many columns are about this evaluation alone, and fit into a terminal."""

_ABOVE = """# Full table

Accuracies in %, of networks that others trained, l_inf norm, certified .. attacked: the truth on the images lies
between them, and both ends are rounded outwards. Band: the accuracy on the images' distribution lies at most so many
points below the certified and above the attacked end, at 95 %, for all radii and orders of a network at once. Passes:
forward and backward passes of the search for distances, in pairs an image. AutoAttack: what it leaves of the first
images at p = inf, with its passes an image and seconds, beside the same of our search on the same images. Published
figures are about p = inf at the larger of the two radii. Seeds, commands and revisions are in `table.json`.

"""


@dataclass(frozen=True)
class Judged:
    """One evaluation of one network.

    Attributes:
        network: What is published about it.
        report: The content of `report.json`.
        rivals: The search's effort and AutoAttack on some first images; empty if they were not compared.
        rival_images: On how many.
        clean_of_all: Clean accuracy on all images that the published one is about; None if it is not known.
    """

    network: PublishedNetwork
    report: Report
    rivals: Sequence[Row] = ()
    rival_images: int = 0
    clean_of_all: float | None = None

    @property
    def model(self) -> ModelReport:
        """The network's part of the report."""
        return next(model for model in self.report["models"] if model["name"] == self.network.name)

    @property
    def at_radius(self) -> Enclosed:
        """At the published radius."""
        return enclosed(self.model, self._radius)

    @property
    def at_half(self) -> Enclosed:
        """At half of it."""
        return enclosed(self.model, self._radius / 2)

    @property
    def checks(self) -> list[Check]:
        """What is published, held against this evaluation."""
        return checks(self.network, self.model, self.at_radius, self.clean_of_all)

    @property
    def passes(self) -> float | None:
        """Passes of the search for distances, in pairs an image; None in reports that do not count them."""
        rows = [row for row in self.model.get("passes", []) if row["measurement"] == "distances"]
        return sum(row["forward"] + row["backward"] for row in rows) / 2 / self.model["images"] if rows else None

    @property
    def _radius(self) -> float:
        return parse_number(self.network.radius, "radius")


def rows(judged: Sequence[Judged]) -> list[list[str]]:
    """The cells of the table, two rows an evaluation: at the published radius, and at half of it.

    Args:
        judged: The evaluations.
    """
    made = []
    for one in judged:
        model, passes = one.model, one.passes
        width = tables.rounded_up(100 * model["band"]["width"], 2)
        effort = [width, _certificate(one), attack_in_words(model), "" if passes is None else f"{passes:.0f}"]
        published = "; ".join(map(str, one.network.figures)) or "nothing"
        made.append([one.network.name, _images(one), one.network.radius, *one.at_radius.cells(), *effort])
        made[-1] += [_beside(one), published]
        made.append(["half the radius", "", WrittenRadii(one.network.radius)(one.at_half.radius), *one.at_half.cells()])
        made[-1] += [""] * (len(HEAD) - len(made[-1]))
    return made


def numbers(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The same as plain numbers, a dictionary a row, with the command and the revision that made it.

    Args:
        judged: The evaluations.
    """
    made = []
    for one in judged:
        model = one.model
        for found in (one.at_radius, one.at_half):
            row: dict[str, Any] = {"network": one.network.name, "data": one.network.images.name}
            row |= {"images": model["images"], "sample": model.get("sample"), "norm": "inf", "radius": found.radius}
            row |= {"clean": found.clean, "clean_of_all": one.clean_of_all}
            for p in ORDERS:
                row[f"certified_W_{p:g}"] = None if found.certified is None else found.certified[p]
                row[f"attacked_W_{p:g}"] = found.attacked[p]
            row |= {"band_width": model["band"]["width"], "band_level": model["band"]["level"]}
            row |= {"certificate": _certificate(one), "attack": attack_in_words(model), "passes": one.passes}
            row |= _rivals(one)
            row |= {"seed": one.report["seed"], "revision": one.report["git_revision"]}
            row |= {"command": without_folders(one.report["command"])}
            made.append(row)
    return made


def write(judged: Sequence[Judged], folder: Path) -> list[Path]:
    """Write `table.md`, `table.csv` and `table.json`.

    Args:
        judged: At least one evaluation.
        folder: Where.

    Returns:
        The files.
    """
    found = [check for one in judged for check in one.checks]
    lines = "\n".join(f"- {check}" for check in found)
    paths = [folder / f"table.{ending}" for ending in ("md", "csv", "json")]
    write_text(paths[0], f"{_ABOVE}{tables.markdown(HEAD, rows(judged))}\n## Beside published figures\n\n{lines}\n")
    flat = numbers(judged)
    write_csv(paths[1], flat)
    published = {
        one.network.name: {
            "source": one.network.source,
            "sha256": one.network.sha256,
            "radius": one.network.radius,
            "images": one.network.images.number,
            "figures": [asdict(figure) for figure in one.network.figures],
        }
        for one in judged
    }
    content = {"rows": flat, "published": published, "checks": [asdict(check) for check in found]}
    write_json(paths[2], content, indent=1)
    return paths


def read_rivals(path: Path) -> tuple[list[Row], int]:
    """What `write_rivals` has written: the rows, and the number of images; nothing if there is no such file.

    Args:
        path: The file.
    """
    if not path.is_file():
        return [], 0
    content: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
    return [Row(**row) for row in content["rows"]], int(content["images"])


def write_rivals(path: Path, found: Sequence[Row], images: int) -> None:
    """Keep what the search and AutoAttack left.

    Args:
        path: The file.
        found: The rows.
        images: On how many images.
    """
    write_json(path, {"images": images, "rows": [asdict(row) for row in found]}, indent=1)


def without_folders(command: str) -> str:
    """A command without the names of the folders in which programs and files are on one machine.

    >>> without_folders("/opt/x/evaluate.py model.weights=/data/a.pth data.images=[b/c.npy] attack.delta=2/255")
    'evaluate.py model.weights=a.pth data.images=[b/c.npy] attack.delta=2/255'
    """
    return re.sub(r"(?<![\w.])/(?:[^\s=,\[\]/]+/)*", "", command)


def _images(one: Judged) -> str:
    count, sample = one.model["images"], one.model.get("sample")
    known = {"all": f"all {count:,}", "the first": f"first {count:,}", "None": f"{count:,}"}  # None: an older report
    return f"{known.get(str(sample), f'{count:,}, drawn,')} of {one.network.images.name}"


def _certificate(one: Judged) -> str:
    """The certificate, and at which radii alone, where not the largest radius of each image was looked for."""
    radii = (one.report.get("config", {}).get("certificate") or {}).get("radii")
    alone = "" if not radii else f", at {' and '.join(map(str, radii))} alone"
    return certificate_in_words(one.model) + alone


def _beside(one: Judged) -> str:
    """AutoAttack beside the search on the same images."""
    if not one.rivals:
        return ""
    said = {
        row.effort: f"{tables.rounded_up(100 * row.accuracy, 2)} ({row.passes:,.0f} passes, {row.seconds:.0f} s)"
        for row in one.rivals
    }
    ours = "; ".join(f"{name} {text}" for name, text in said.items() if name != "AutoAttack")
    return f"{said['AutoAttack']} beside {ours} on {one.rival_images}"


def _rivals(one: Judged) -> dict[str, Any]:
    found: dict[str, Any] = {"compared_images": one.rival_images or None}
    for kind in ("search", "autoattack"):
        row = next((row for row in one.rivals if (row.effort == "AutoAttack") == (kind == "autoattack")), None)
        for key in ("accuracy", "passes", "seconds"):
            value = math.nan if row is None else float(getattr(row, key))
            found[f"{kind}_{key}"] = None if math.isnan(value) else value
    return found

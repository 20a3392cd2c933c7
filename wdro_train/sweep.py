"""The table at the end of a multirun."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from wdro_train import tables

METRICS_FILE = "metrics.json"
_COLUMNS = ("clean_acc", "adv_acc", "ratio", "ratio_upper", "ratio_lower")


class SweepTable(Callback):
    """Collects `metrics.json` of every job of a sweep into a table and `sweep.csv`."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the job folders, whatever launcher ran them."""
        folder = Path(config.hydra.sweep.dir)
        rows = [_row(job) for job in sorted(folder.iterdir(), key=_number) if job.is_dir()]
        done = [row for row in rows if row is not None]
        if not done:
            return
        header = ["job", "overrides", *(f"{part}/{key}" for part in ("val", "test") for key in _COLUMNS)]
        with (folder / "sweep.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *done])
        tables.show("sweep", header, done, caption=f"also in {folder / 'sweep.csv'}")


def _row(job: Path) -> list[str] | None:
    overrides = job / ".hydra" / "overrides.yaml"
    if not overrides.is_file():
        return None
    what = " ".join(str(item) for item in OmegaConf.load(overrides))
    try:
        report = json.loads((job / METRICS_FILE).read_text())
    except FileNotFoundError:
        report = {}
    values = [report.get(part, {}).get(key) for part in ("val", "test") for key in _COLUMNS]
    return [job.name, what, *(tables.number(value) for value in values)]


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name) if job.name.isdigit() else 2**31, job.name)

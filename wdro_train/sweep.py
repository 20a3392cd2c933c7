"""Multiruns: one failed job does not cost the others, and a table ends the sweep."""

from __future__ import annotations

import csv
import json
import math
import sys
import traceback
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from wdro_train import doors, tables

METRICS_FILE = "metrics.json"
ERROR_FILE = "error.txt"
_METRICS = ("clean_acc", "adv_acc", "worst_acc", "ratio", "ratio_upper", "ratio_lower")
_SHOWN = ("val/clean_acc", "val/adv_acc", "val/worst_acc", "test/clean_acc", "test/adv_acc", "test/worst_acc")
_SHOWN += ("test/ratio",)

Row = dict[str, str]


class SweepTable(Callback):
    """Collects `metrics.json` of every job of a sweep into a table and `sweep.csv`.

    Hydra gives up on a sweep, and on its end, when a job has failed. Here the failed job leaves `error.txt` and
    counts as NaN for sweepers that optimise; the sweep goes on, and its exit code is 1 at the end.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Take note of a failure."""
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        try:
            _ = job_return.return_value
        except Exception as error:
            reason = doors.sentence(error)
            text = "".join(traceback.format_exception(error)) if reason is None else f"error: {reason}\n"
        print(text, end="", file=sys.stderr)
        (Path(config.hydra.runtime.output_dir) / ERROR_FILE).write_text(text)
        job_return.return_value = math.nan
        job_return.status = JobStatus.COMPLETED

    @rank_zero_only
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the job folders, whatever launcher ran them.

        Raises:
            SystemExit: Some job left no result.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = sorted((job for job in folder.iterdir() if (job / ".hydra").is_dir()), key=_number)
        overrides = [[str(item) for item in OmegaConf.load(job / ".hydra" / "overrides.yaml")] for job in jobs]
        if not jobs:
            return
        common = [item for item in overrides[0] if len(jobs) > 1 and all(item in o for o in overrides)]
        rows = [_row(job, " ".join(what)) for job, what in zip(jobs, overrides, strict=True)]
        with (folder / "sweep.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        shown = [key for key in _SHOWN if any(row[key] for row in rows)] or ["val/clean_acc"]
        lines = []
        for row, what in zip(rows, overrides, strict=True):
            varied = " ".join(item for item in what if item not in common)
            lines.append([row["job"], varied, *(_short(row[key]) for key in shown)])
        tables.show(
            f"sweep of {len(rows)} jobs" + (f", all with {' '.join(common)}" if common else ""),
            ["job", "overrides", *(key.replace("/", "\n") for key in shown)],
            lines,
            caption=f"more in {folder / 'sweep.csv'}",
            texts=2,
        )
        failed = [row["job"] for row in rows if row["error"]]
        if failed:
            print(f"error: {len(failed)} of {len(rows)} jobs failed: {', '.join(failed)}", file=sys.stderr)
            raise SystemExit(1)


def _row(job: Path, overrides: str) -> Row:
    """One line of `sweep.csv`: numbers in full, empty where there is none."""
    metrics, error = job / METRICS_FILE, job / ERROR_FILE
    report = json.loads(metrics.read_text()) if metrics.is_file() else {}
    values = {f"{part}/{key}": report.get(part, {}).get(key) for part in ("val", "test") for key in _METRICS}
    reason = ""
    if not report:
        reason = error.read_text().strip().splitlines()[-1] if error.is_file() else "no result"
    numbers = {key: "" if value is None else str(value) for key, value in values.items()}
    return {"job": job.name, "overrides": overrides, **numbers, "error": reason}


def _short(value: str) -> str:
    return tables.number(float(value) if value else None)


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name) if job.name.isdigit() else sys.maxsize, job.name)

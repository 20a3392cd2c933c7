"""Multiruns: one failed job does not cost the others, and a table ends the sweep."""

from __future__ import annotations

import csv
import json
import math
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from wdro_train import interruption, jobs, tables
from wdro_train.errors import sentence

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.json"
ERROR_FILE = "error.txt"

Row = dict[str, str]


class SweepTable(Callback):
    """Collects `metrics.json` of every job of a sweep into a table and `sweep.csv`.

    Hydra gives up on a sweep, and on its end, when a job has failed. Here the failed job leaves `error.txt` and
    counts as NaN for sweepers that optimise; the sweep goes on, and its exit code is 1 at the end.

    Attributes:
        file: What a job that went well leaves.
        columns: Of `sweep.csv`.
        shown: Those of the printed table, if some job has a value.
    """

    file = METRICS_FILE
    columns: tuple[str, ...] = tuple(
        f"{part}/{key}"
        for part in ("val", "test")
        for key in ("clean_acc", "adv_acc", "worst_acc", "ratio", "ratio_upper", "ratio_lower")
    )
    shown: tuple[str, ...] = (*(key for key in columns if "ratio" not in key), "test/ratio")

    def values(self, result: dict[str, Any]) -> dict[str, float | None]:
        """The columns of one job.

        Args:
            result: Content of its `file`.
        """
        return {key: result.get(key.partition("/")[0], {}).get(key.partition("/")[2]) for key in self.columns}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A sweep that a signal ends has a table of the jobs done so far."""
        interruption.before_leaving(partial(self.on_multirun_end, config))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget the failure of an earlier job in the same folder."""
        (Path(config.hydra.runtime.output_dir) / ERROR_FILE).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Take note of a failure, in the process of the job."""
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status != JobStatus.FAILED:
            return
        try:
            _ = job_return.return_value
        except jobs.JobError as error:
            text = f"{error}\n"
        except Exception as error:
            reason = sentence(error)
            text = "".join(traceback.format_exception(error)) if reason is None else f"error: {reason}\n"
            print(text, end="", file=sys.stderr)
        (Path(config.hydra.runtime.output_dir) / ERROR_FILE).write_text(text)
        job_return.return_value = math.nan
        job_return.status = JobStatus.COMPLETED

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read the job folders, whatever launcher ran them.

        Raises:
            SystemExit: Some job left no result.
        """
        folder = Path(config.hydra.sweep.dir)
        folders = sorted((job for job in folder.iterdir() if (job / ".hydra").is_dir()), key=_number)
        if jobs.started_rank() > 0 or not folders:
            return
        overrides = [[str(item) for item in OmegaConf.load(job / ".hydra" / "overrides.yaml")] for job in folders]
        common = [item for item in overrides[0] if len(folders) > 1 and all(item in o for o in overrides)]
        rows = [self._row(job, " ".join(what)) for job, what in zip(folders, overrides, strict=True)]
        with (folder / "sweep.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        shown = [key for key in self.shown if any(row[key] for row in rows)] or list(self.shown[:1])
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

    def _row(self, job: Path, overrides: str) -> Row:
        """One line of `sweep.csv`: numbers in full, empty where there is none."""
        result, error = job / self.file, job / ERROR_FILE
        # A failed job has no result, whatever an earlier one left in its folder.
        found = json.loads(result.read_text()) if result.is_file() and not error.is_file() else {}
        reason = ""
        if not found:
            reason = error.read_text().strip().splitlines()[-1] if error.is_file() else "no result"
        values = self.values(found) if found else dict.fromkeys(self.columns)
        numbers = {key: "" if value is None else str(value) for key, value in values.items()}
        return {"job": job.name, "overrides": overrides, **numbers, "error": reason}


class EvaluationTable(SweepTable):
    """The same for `evaluate.py`, from `report.json`: the first model of each job, in the job's ball."""

    file = REPORT_FILE
    columns = ("p", "delta", "clean_acc", "worst_acc", "band", "images_moved")
    shown = columns

    def values(self, result: dict[str, Any]) -> dict[str, float | None]:
        """The columns of one job.

        Args:
            result: Content of its `report.json`.
        """
        model = result["models"][0]
        worst = model["worst_case"]
        found = (worst["p"], worst["delta"], model["clean_accuracy"], worst["accuracy"], model["band"]["width"])
        return dict(zip(self.columns, (*found, worst["images_moved"]), strict=True))


def _short(value: str) -> str:
    return tables.number(float(value) if value else None)


def _number(job: Path) -> tuple[int, str]:
    return (int(job.name) if job.name.isdigit() else sys.maxsize, job.name)

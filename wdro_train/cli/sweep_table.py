"""Multiruns: one failed job does not cost the others, and a table ends the sweep."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import sys
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from wdro_train.cli import processes
from wdro_train.cli.endings import leave, leaving_on_error
from wdro_train.cli.error_messages import sentence
from wdro_train.cli.seeds import SeedGroup, seed_groups
from wdro_train.cli.sweep_progress import SweepProgress
from wdro_train.config import latest, new_folders, run_folders, slurm
from wdro_train.config.file_lock import lock_file
from wdro_train.config.run_folders import ERROR_FILE, METRICS_FILE, REPORT_FILE
from wdro_train.utils import interruption
from wdro_train.utils.files import cannot_write, write_csv, write_json, write_text

_SWEEP, _SEEDS = "sweep", "seeds"
TABLE_FILE = f"{_SWEEP}.csv"
_OFFLINE = "wandb/offline-run-*"
_PATIENCE = 60.0  # seconds that a sweep waits for another one, which writes a table of a few lines

JobRow = dict[str, str]


class SweepTable(Callback):
    """Collects `metrics.json` of every job of a sweep into a table and `sweep.csv`.

    Hydra gives up on a sweep, and on its end, when a job has failed. Here the failed job leaves `error.txt` and
    counts as NaN for sweepers that optimise; the sweep goes on, and its exit code is 1 at the end.

    Each sweep keeps notes of its own jobs in a hidden folder, one file a job, until the table is written: another
    sweep in the same folder has its own. The callback travels to the jobs with the name of the sweep in it.

    Attributes:
        file: What a job that went well leaves.
        columns: Of `sweep.csv`.
        shown: Those of the printed table, if some job has a value.
        speaks: Whether it says on standard output how far the sweep is, because its jobs do not.
    """

    file = METRICS_FILE
    columns: tuple[str, ...] = tuple(
        f"{part}/{key}"
        for part in ("val", "test")
        for key in (
            *("clean_acc", "adv_acc", "worst_acc", "certified_acc"),
            *("ratio", "worst_ratio", "ratio_upper", "ratio_lower"),
        )
    )
    shown: tuple[str, ...] = (*(key for key in columns if "ratio" not in key), "test/worst_ratio")
    speaks = True

    def values(self, result: dict[str, Any]) -> dict[str, float | None]:
        """The columns of one job.

        Args:
            result: Content of its `file`.
        """
        return {key: result.get(key.partition("/")[0], {}).get(key.partition("/")[2]) for key in self.columns}

    def __init__(self) -> None:
        self.sweep = uuid.uuid4().hex[:12]
        self.progress: SweepProgress | None = None

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Choose the folder of a single run.

        Raises:
            SystemExit: There cannot be such a folder.
        """
        with leaving_on_error():
            new_folders.prepare_run(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Choose the folder of the sweep, which has a table of the jobs done so far even if a signal ends it.

        Raises:
            SystemExit: There cannot be such a folder.
        """
        with leaving_on_error():
            new_folders.prepare_sweep(config)
        self.progress = SweepProgress.of(config) if self.speaks else None
        interruption.before_leaving(partial(self.on_multirun_end, config))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take note that the sweep has this job.

        Raises:
            SystemExit: The note cannot be written, and then neither can a result.
        """
        if config.hydra.mode == RunMode.MULTIRUN:
            latest.begun(Path(config.hydra.sweep.dir))
            self._note(config, dict.fromkeys(self.columns), "no result")
            if self.progress is not None:
                self.progress.begins(config.hydra.job.num, config.hydra.overrides.task)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Take note of the result or the failure, in the process of the job."""
        folder = Path(config.run_dir or config.hydra.runtime.output_dir)
        try:
            if config.hydra.mode == RunMode.MULTIRUN:
                self._conclude(config, job_return, folder)
        finally:
            run_folders.release(folder)

    def _conclude(self, config: DictConfig, job_return: JobReturn, folder: Path) -> None:
        if job_return.status != JobStatus.FAILED:
            result = folder / self.file
            if result.is_file():
                before = self.progress is not None and not self.progress.since(result.stat().st_mtime)
                values = self.values(json.loads(result.read_text(encoding="utf-8")))
                self._tell(self._note(config, values, ""), skipped=before)
            return
        try:
            _ = job_return.return_value
        except processes.JobError as error:
            text = f"{error}\n"
        except Exception as error:
            reason = sentence(error)
            text = "".join(traceback.format_exception(error)) if reason is None else f"error: {reason}\n"
            print(text, end="", file=sys.stderr)
        job_return.return_value = math.nan
        job_return.status = JobStatus.COMPLETED
        self._tell(self._note(config, dict.fromkeys(self.columns), text.strip().splitlines()[-1]), skipped=False)
        if run_folders.holds(folder):
            with leaving_on_error():
                write_text(folder / ERROR_FILE, text)

    def _tell(self, row: JobRow, *, skipped: bool) -> None:
        """Say that a job is over."""
        if self.progress is not None:
            print(self.progress.ends(row, skipped=skipped), flush=True)

    def _note(self, config: DictConfig, values: dict[str, float | None], error: str) -> JobRow:
        """Write down one line of the table: numbers in full, empty where there is none."""
        numbers = {key: "" if value is None else str(value) for key, value in values.items()}
        overrides = [str(item) for item in config.hydra.overrides.task if not item.startswith("resume=")]
        note = {"job": Path(config.hydra.runtime.output_dir).name, "overrides": overrides, **numbers, "error": error}
        with leaving_on_error():
            write_json(self._notes(config) / f"{config.hydra.job.num}.json", note)
        return {**numbers, "error": error}

    def _notes(self, config: DictConfig) -> Path:
        return Path(config.hydra.sweep.dir) / f".sweep-{self.sweep}"

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the table of the jobs of this sweep, whatever launcher ran them.

        Raises:
            SystemExit: Some job left no result.
        """
        folder = Path(config.hydra.sweep.dir)
        files = sorted(self._notes(config).glob("*.json"), key=lambda file: int(file.stem))
        if slurm.started_rank() > 0 or not files:
            return
        latest.begun(folder)
        notes = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        overrides: list[list[str]] = [note["overrides"] for note in notes]
        rows: list[JobRow] = [note | {"overrides": " ".join(note["overrides"])} for note in notes]
        with leaving_on_error():
            path = _write_table(rows, folder)
            self._show(rows, overrides, path)
            groups = seed_groups(list(zip(overrides, rows, strict=True)), self.columns)
            if groups:
                _show_seeds(groups, self._columns(rows), path.with_name(path.name.replace(_SWEEP, _SEEDS)))
        if any(folder.glob(f"*/{_OFFLINE}")):
            print(f"dashboard   wandb sync {folder}/*/{_OFFLINE}")
        shutil.rmtree(self._notes(config), ignore_errors=True)
        failed = [row["job"] for row in rows if row["error"]]
        if failed:
            leave(f"{len(failed)} of {len(rows)} jobs failed: {', '.join(failed)}")

    def _show(self, rows: list[JobRow], overrides: list[list[str]], path: Path) -> None:
        """Print the table, with the overrides that all jobs have in common above it."""
        from wdro_train.utils import tables  # and with it Rich, which commands without a table need not load

        common = [item for item in overrides[0] if len(rows) > 1 and all(item in o for o in overrides)]
        shown = self._columns(rows)
        lines = []
        for row, what in zip(rows, overrides, strict=True):
            varied = " ".join(item for item in what if item not in common)
            numbers = (tables.logged(key, float(row[key]) if row[key] else None) for key in shown)
            lines.append([row["job"], varied, *numbers])
        tables.show(
            f"sweep of {len(rows)} jobs" + (f", all with {' '.join(common)}" if common else ""),
            ["job", "overrides", *(key.replace("/", "\n") for key in shown)],
            lines,
            caption=f"more in {path}",
            texts=2,
        )

    def _columns(self, rows: list[JobRow]) -> list[str]:
        """Those of the printed tables."""
        return [key for key in self.shown if any(row[key] for row in rows)] or list(self.shown[:1])


class EvaluationTable(SweepTable):
    """The table of a sweep of `evaluate.py`: one line for each job, from the first model in its `report.json`."""

    file = REPORT_FILE
    columns = ("p", "delta", "clean_acc", "worst_acc", "band", "images_moved")
    shown = columns
    speaks = False

    def values(self, result: dict[str, Any]) -> dict[str, float | None]:
        """The columns of one job.

        Args:
            result: Content of its `report.json`.
        """
        model = result["models"][0]
        worst = model["worst_case"]
        found = (worst["p"], worst["delta"], model["clean_accuracy"], worst["accuracy"], model["band"]["width"])
        return dict(zip(self.columns, (*found, worst["images_moved"]), strict=True))


def _show_seeds(groups: list[SeedGroup], columns: list[str], path: Path) -> None:
    """Print mean and standard deviation over seeds, and write them, in full, to a file of their own."""
    from wdro_train.utils import tables

    common = [item for item in groups[0].overrides if all(item in group.overrides for group in groups)]
    rows, lines = [], []
    for group in groups:
        row = {"overrides": " ".join(group.overrides), "seeds": " ".join(group.seeds)}
        for key in columns:
            for name, value in (("mean", group.mean(key)), ("std", group.deviation(key))):
                row[f"{key} {name}"] = "" if value is None else str(value)
        rows.append(row)
        varied = " ".join(item for item in group.overrides if item not in common)
        lines.append([varied, str(len(group.seeds)), *(group.shown(key) for key in columns)])
    write_csv(path, rows)
    tables.show(
        "mean ± standard deviation over seeds",
        ["overrides", "seeds", *(key.replace("/", "\n") for key in columns)],
        lines,
        caption=f"more in {path}",
    )


def _write_table(rows: list[JobRow], folder: Path) -> Path:
    """Write `sweep.csv`, or the first free `sweep-1.csv`: only a table whose jobs have all run again is replaced.

    Sweeps that end in one folder at the same moment choose one after the other.
    """
    jobs_here = {row["job"] for row in rows}
    path, number = folder / TABLE_FILE, 0
    with _alone(folder):
        while path.is_file() and not _jobs_in(path) <= jobs_here:
            number += 1
            path = folder / f"{Path(TABLE_FILE).stem}-{number}.csv"
        write_csv(path, rows)
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no other sweep choose the name of its table in this folder meanwhile, unless it has done so for a minute."""
    lock = folder / f".{_SWEEP}.lock"
    try:
        handle = lock_file(lock, _PATIENCE)
    except OSError as error:
        raise cannot_write(lock, error, "hydra.sweep.dir") from error
    if handle is None:
        yield
        return
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before the lock is given back, so that nobody gets one on a file that is gone
        os.close(handle)


def _jobs_in(path: Path) -> set[str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row.get("job", "") for row in csv.DictReader(file)}

"""A run's logged values in one CSV file, which a resumed run goes on with."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from wdro_train.training.resuming import set_aside
from wdro_train.utils import files


class RunCSVLogger(CSVLogger):
    """Lightning's `CSVLogger`, but a resumed run appends to the file of the run that it continues.

    Lightning's own logger deletes the file. Here rows of epochs that are trained again are replaced and all others
    stay. Nothing in the folder is touched before there is a first row to write, so a run that fails before loses none.
    """

    _experiment: RunWriter | None

    @property
    @rank_zero_experiment
    def experiment(self) -> RunWriter:
        """What writes the rows."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = RunWriter(self.log_dir)
        return self._experiment

    @rank_zero_only
    def continue_at(self, epoch: int, *, same_measure: bool) -> None:
        """The rows to come begin with this epoch, and belong to the same run as those that are there.

        Args:
            epoch: The first one.
            same_measure: Whether the earlier values can stand in one column with those to come; otherwise they are
                kept in a file of their own.
        """
        self.experiment.continue_at(epoch, same_measure)


class RunWriter(ExperimentWriter):
    """Lightning's writer of rows, which looks at earlier rows when it writes its first.

    Args:
        log_dir: The folder of the file.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._begun = False
        self._continued: tuple[int, bool] | None = None

    def continue_at(self, epoch: int, same_measure: bool) -> None:
        """See `RunCSVLogger.continue_at`."""
        self._continued = epoch, same_measure

    def save(self) -> None:
        """Write the rows since the last time."""
        if self.metrics and not self._begun:
            self._begin(Path(self.metrics_file_path))
            self._begun = True
        super().save()

    def _check_log_dir_exists(self) -> None:
        """Do nothing, where Lightning's writer deletes an earlier file: it is looked at with the first row."""

    def _begin(self, file: Path) -> None:
        """Before the first row: keep the earlier rows that belong to this run, and move or delete a file of another."""
        if not file.is_file():
            return
        if self._continued is None:
            file.unlink()
            return
        epoch, same_measure = self._continued
        if not same_measure:
            rank_zero_warn(
                f"the values logged before were measured otherwise; they are in {set_aside(file, epoch)} now"
            )
            return
        with file.open(newline="") as text:
            lines = [line for line in text if line.endswith("\n")]  # a killed run may have left half a line
        reader = csv.DictReader(lines)
        rows = [row for row in reader if not row.get("epoch") or float(row["epoch"]) < epoch]
        self.metrics_keys = list(reader.fieldnames or ())
        content = io.StringIO(newline="")
        writer = csv.DictWriter(content, fieldnames=self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(file, content.getvalue())

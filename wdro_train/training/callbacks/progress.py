"""How far a run is: two lines in a terminal that move, or one plain line for each epoch and each stage in a file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from rich.console import Console
from rich.live import Live

from wdro_train.config import sweep_job
from wdro_train.data import ImageDataModule
from wdro_train.training import run_output
from wdro_train.training.progress_lines import Progress, accuracies, two_lines
from wdro_train.training.time_left import TimeLeft, shown
from wdro_train.utils import tables

_PER_SECOND = 4  # how often the terminal is drawn, and the loss is fetched from the device


class ProgressBar(LightningProgressBar):
    """Shows the epoch, the stage, the time that is left of the run, and the latest accuracies.

    In a terminal these are two lines that stay in their place and vanish at the end. Where standard output is a file
    or a pipe, every epoch and every test leaves one line as soon as it is over. Epochs are counted from 1. The jobs of
    a sweep share the terminal's two lines, and leave their own in `train.log`.

    Args:
        test: Whether a test follows the training, whose time then counts too.
        console: Where to draw; standard output by default.
    """

    def __init__(self, test: bool = True, console: Console | None = None) -> None:
        super().__init__()
        self.test = test
        self._console = console
        self._enabled = True
        self._live: Live | None = None
        self._times = TimeLeft()
        self._state = Progress()
        self._last = self._epoch_began = self._loss_seen = time.monotonic()
        self._unreported = False

    def enable(self) -> None:
        """Show something."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing, as on every rank but the first."""
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the two lines."""
        run_output.say(" ".join(map(str, args)))

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to draw."""
        self._draw()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to draw, if there was no check before."""
        self._draw()
        self._tick()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A line for the epoch before, whose values are all known by now; and a fresh bar."""
        self._report_epoch(trainer)
        self._epoch_began = self._tick()
        self._state.stage, self._state.done = "training", 0
        self._state.total = _finite(self.total_train_batches)
        self._state.epoch, self._state.epochs = trainer.current_epoch + 1, _epochs(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A training step is over."""
        before, now = self._last, self._tick()
        self._times.trained(now - before)
        self._state.stage, self._state.done = "training", batch_idx + 1
        self._state.total = _finite(self.total_train_batches)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs  # a step may return no loss
        if self._live is not None and loss is not None and now - self._loss_seen > 1 / _PER_SECOND:
            self._loss_seen = now
            self._state.values["loss"] = float(loss)
        self._look_ahead(trainer, batch_idx + 1, 0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The epoch has to be reported, when all of its values are known."""
        self._unreported = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A line for the last epoch."""
        self._report_epoch(trainer)
        self._clear()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A validation begins, in a training or by itself."""
        self._draw()
        self._tick()
        self._state.stage = "checking" if trainer.sanity_checking else "validation"
        self._state.done, self._state.total = 0, _batches(trainer, "val")

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of a validation is over."""
        before, now = self._last, self._tick()
        self._state.done = batch_idx + 1
        if not trainer.sanity_checking:
            self._times.evaluated(now - before)
            self._look_ahead(trainer, None, batch_idx + 1)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The accuracies of the whole set are known."""
        self._tick()
        if not trainer.sanity_checking:
            self._state.values |= accuracies(trainer.callback_metrics, "val/")
        if trainer.state.fn == "validate":
            self._clear()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A test begins."""
        self._epoch_began = self._tick()
        self._state = replace(self._state, stage="test", done=0, total=_batches(trainer, "test"), left=None)
        self._draw()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch of a test is over."""
        self._tick()
        self._state.done = batch_idx + 1
        each = (self._last - self._epoch_began) / (batch_idx + 1)
        self._state.left = each * (self._state.total - self._state.done) if self._state.total else None
        self._state.since = self._last

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A line for the test."""
        self._clear()
        self._tell(["test", *_named(accuracies(trainer.callback_metrics, "test/"))])

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._clear()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._clear()

    def _draw(self) -> None:
        """Put the two lines into the terminal, if there is one and they are not there yet."""
        job = sweep_job.current()
        console = self._console or Console()
        if self._live is None and self._enabled and console.is_terminal and (job is None or job.alone):
            self._state.job = job
            self._live = Live(
                get_renderable=lambda: two_lines(self._state),
                console=console,
                refresh_per_second=_PER_SECOND,
                transient=True,
            )
            self._live.start()

    def _clear(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _tick(self) -> float:
        self._last = time.monotonic()
        return self._last

    def _look_ahead(self, trainer: L.Trainer, steps_done: int | None, batches_done: int | None) -> None:
        """Work out the time that is left of the run.

        Args:
            trainer: Of the run.
            steps_done: Training steps of this epoch that are over; None for all.
            batches_done: Validation batches of this epoch that are over; None for all.
        """
        steps, epoch, epochs = _finite(self.total_train_batches), self._state.epoch, self._state.epochs
        self._state.left, self._state.since = None, self._last
        if not steps or epoch is None or epochs is None:
            return
        batches, every = _batches(trainer, "val") or 0, trainer.check_val_every_n_epoch or 1
        evaluated = (epochs // every - epoch // every) * batches
        if epoch % every == 0 and batches_done is not None:
            evaluated += batches - batches_done
        if self.test:
            evaluated += _test_batches(trainer) or batches
        trained = (epochs - epoch) * steps + (0 if steps_done is None else steps - steps_done)
        self._state.left = self._times.seconds(trained, evaluated)

    def _report_epoch(self, trainer: L.Trainer) -> None:
        if not self._unreported:
            return
        self._unreported = False
        values = accuracies(trainer.callback_metrics, "train/", ("loss",))
        values |= accuracies(trainer.callback_metrics, "val/")
        self._state.values |= values
        self._look_ahead(trainer, None, None)
        epochs = "" if self._state.epochs is None else f"/{self._state.epochs}"
        left = [] if not self._state.left else [f"{shown(self._state.left)} left"]
        self._tell([f"epoch {self._state.epoch}{epochs}", *_named(values)], left)

    def _tell(self, parts: list[str], more: list[str] | None = None) -> None:
        """One line for what is over, with the time that it took."""
        if self._enabled:
            took = shown(time.monotonic() - self._epoch_began)
            line = "  ".join([*parts, ", ".join([took, *(more or [])])])
            if self._shows_lines():
                run_output.say(line)
            else:
                run_output.keep(line)

    def _shows_lines(self) -> bool:
        """In a terminal the two lines say it already, and the table at the end."""
        return not (self._console or Console()).is_terminal


def _named(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {tables.logged(name, value)}" for name, value in values.items()]


def _finite(batches: float) -> int | None:
    return int(batches) if math.isfinite(batches) else None


def _epochs(trainer: L.Trainer) -> int | None:
    """How many epochs the run has; None if nobody knows."""
    if trainer.max_steps is not None and trainer.max_steps > 0 and math.isfinite(trainer.num_training_batches):
        steps = trainer.max_steps * trainer.accumulate_grad_batches
        by_steps = math.ceil(steps / max(trainer.num_training_batches, 1))
        return min(by_steps, trainer.max_epochs) if trainer.max_epochs and trainer.max_epochs > 0 else by_steps
    return trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None


def _test_batches(trainer: L.Trainer) -> int | None:
    """The batches of the test that follows; None if nobody knows. Lightning makes their loader when it begins."""
    data: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, ImageDataModule):
        return None
    limit = trainer.limit_test_batches
    batches = math.ceil(len(data.arrays("test").labels) / data.eval_batch_size)
    return min(batches, limit) if isinstance(limit, int) else math.ceil(batches * (1.0 if limit is None else limit))


def _batches(trainer: L.Trainer, stage: str) -> int | None:
    """The batches of a validation or test set; None if nobody knows."""
    if stage == "val":
        counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
    else:
        counts = trainer.num_test_batches
    total = sum(counts) if isinstance(counts, list) else counts
    return _finite(total) or None

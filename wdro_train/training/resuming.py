"""Resuming compares like with like: what of a checkpoint still holds under the configuration that goes on with it.

A score is only comparable with scores of the same measurement. Every key of the configuration is therefore of one
`Kind`, and a key that nobody has sorted counts as part of the measurement, so that a new one cannot be forgotten.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning, Timer, WeightAveraging

from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number

DATA_DIGEST = "data_digest"
"""Key of the configuration in a checkpoint: a digest of the validation images and labels."""


class Kind(Enum):
    """What a key of the configuration decides about."""

    MEASURE = "what a validation score measures"
    ATTACK = "what the training attack does, and so what it has learnt"
    OPTIMIZER = "what the optimizer does with a gradient"
    SCHEDULE = "how the learning rate goes on"
    OTHER = "nothing that a checkpoint remembers"


# The first pattern that matches decides; a key that none matches is part of the measurement.
_KINDS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (
        Kind.MEASURE,
        (
            "attack.p",
            "attack.norm",
            "attack.delta",
            *(f"callbacks.adversary.attack.{k}" for k in ("p", "norm", "delta")),
        ),
    ),
    (Kind.ATTACK, ("attack", "attack.*", "callbacks.adversary.attack", "callbacks.adversary.attack.*")),
    (Kind.OPTIMIZER, ("optimizer", "optimizer.*")),
    (
        Kind.SCHEDULE,
        (
            "scheduler",
            "scheduler.*",
            "data.batch_size",
            *(f"trainer.{key}" for key in ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time")),
            "trainer.limit_train_batches",
            "trainer.accumulate_grad_batches",
        ),
    ),
    (
        Kind.OTHER,
        (
            *("name", "seed", "ckpt_path", "test", "dry_run", "run_dir", "hydra.*", "logger", "logger.*"),
            *("finetune.*", "objective", "objective.*", "model.weights", "model.pretrained"),
            *("data.seed", "data.num_workers", "data.download", "data.delta.*", "data.augment", "data.augment.*"),
            *("callbacks.checkpoint.dirpath", "callbacks.checkpoint.verbose"),
            *("callbacks.checkpoint.save_on_train_epoch_end", "callbacks.checkpoint.enable_version_counter"),
            "callbacks.overfitting_warning.tolerance",
            *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.strategy.*"),
            *("trainer.sync_batchnorm", "trainer.use_distributed_sampler", "trainer.default_root_dir"),
            *("trainer.deterministic", "trainer.benchmark", "trainer.profiler", "trainer.profiler.*"),
            *("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.detect_anomaly"),
            *("trainer.enable_*", "trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.limit_test_*"),
            *("trainer.limit_predict_batches", "trainer.check_val_every_n_epoch", "trainer.val_check_interval"),
        ),
    ),
)
# Callbacks that neither judge nor remember a score, by the name of their class, whatever the configuration calls them.
_SCORELESS = {
    *("AdversarialImages", "AdversarialWeightPerturbation", "ProgressBar", "RadiusWarmup", "SeedEpoch"),
    *("ValidationHistory", "DeviceStatsMonitor", "LearningRateMonitor", "ModelSummary", "RichModelSummary"),
    *("RichProgressBar", "ThroughputMonitor", "Timer", "TQDMProgressBar"),
}
_CHECKPOINTS = {"RunCheckpoint", "ModelCheckpoint"}
_SHOWN = 6  # changes in a sentence


@dataclass(frozen=True)
class Change:
    """A key of the configuration with another value than in the checkpoint; None where there is no such key."""

    key: str
    before: Any
    now: Any
    kind: Kind

    def __str__(self) -> str:
        """As it stands in a sentence."""
        before, now = ("none" if value is None else value for value in (self.before, self.now))
        return f"{self.key} {before} -> {now}"


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two resolved configurations, sorted into kinds.

    Args:
        before: The configuration in the checkpoint.
        now: The one that is to go on.
    """
    old, new = _flat(before), _flat(now)
    changes = []
    for key in sorted(old.keys() | new.keys()):
        if key == DATA_DIGEST and None in (old.get(key), new.get(key)):
            continue  # one of them does not know its images
        if not _same(old.get(key), new.get(key)):
            changes.append(Change(key, old.get(key), new.get(key), kind(key, before, now)))
    return changes


def kind(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Kind:
    """What a key decides about.

    Args:
        key: With dots: `callbacks.checkpoint.monitor`.
        before: The configuration in the checkpoint.
        now: The one that is to go on.
    """
    if key == "data.eval_batch_size" and _batches_do_not_matter(before) and _batches_do_not_matter(now):
        return Kind.OTHER
    if key.startswith("callbacks.") and _is_scoreless(key.split(".")[1], before, now):
        return Kind.OTHER
    for found, patterns in _KINDS:
        if any(fnmatchcase(key, pattern) for pattern in patterns):
            return found
    return Kind.MEASURE


@dataclass(frozen=True)
class Resumption:
    """A checkpoint, seen from the configuration that goes on with it.

    Attributes:
        path: Of the checkpoint.
        epochs: Epochs that are finished.
        steps: Optimizer steps that are done.
        whole_epochs: Whether the checkpoint was written at the end of an epoch.
        changes: What is configured otherwise.
    """

    path: str
    epochs: int
    steps: int
    whole_epochs: bool
    changes: tuple[Change, ...]

    @classmethod
    def of(
        cls,
        checkpoint: Mapping[str, Any],
        before: Mapping[str, Any] | None,
        now: Mapping[str, Any] | None,
        path: str | Path,
    ) -> Resumption:
        """Compare a checkpoint with a configuration.

        Args:
            checkpoint: As Lightning wrote it.
            before: The resolved configuration in it; None, there or now, compares nothing.
            now: The resolved configuration that is to go on.
            path: Of the checkpoint.

        Raises:
            UserError: The checkpoint holds weights only.
        """
        if "loops" not in checkpoint or "optimizer_states" not in checkpoint:
            raise UserError(
                f"{path} holds weights and no state of the training, so it cannot be resumed; "
                f"start a new run from its network with finetune.ckpt_path={path}"
            )
        loop = checkpoint["loops"]["fit_loop"]
        epochs, whole = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]["is_last_batch"]
        return cls(
            path=str(path),
            epochs=epochs["ready"] if whole else epochs["processed"],
            steps=checkpoint["global_step"],
            whole_epochs=whole,
            changes=() if before is None or now is None else tuple(compare(before, now)),
        )

    def of_kind(self, *kinds: Kind) -> list[Change]:
        """The changes of some kinds."""
        return [change for change in self.changes if change.kind in kinds]

    @property
    def measures_the_same(self) -> bool:
        """Whether scores of before can be compared with scores of now."""
        return not self.of_kind(Kind.MEASURE)

    def refuse_impossible(self, max_epochs: int | None, max_steps: int | None = None) -> None:
        """Refuse what cannot go on from this checkpoint, before any work is done.

        Args:
            max_epochs: Length of the run; None or -1 is no limit.
            max_steps: The same in optimizer steps.

        Raises:
            UserError: Another optimizer, other frozen weights, a shorter run, or nothing left to measure.
        """
        way_out = f"or start a new run from the network with finetune.ckpt_path={self.path}"
        for change in self.changes:
            if change.key == "optimizer._target_":
                raise UserError(
                    f"{self.path} holds the state of the optimizer {change.before}, which says nothing to "
                    f"{change.now}; keep the optimizer, {way_out}"
                )
            if change.key.startswith("finetune.freeze"):
                raise UserError(
                    f"{self.path} was trained with other frozen weights ({change}), whose optimizer state does not "
                    f"fit; keep finetune.freeze, {way_out}"
                )
        limits = (("epochs", self.epochs, max_epochs), ("steps", self.steps, max_steps))
        for unit, done, limit in limits:
            if not isinstance(limit, int) or limit < 0 or done < limit:
                continue
            if done > limit:
                raise UserError(
                    f"{self.path} is trained for {done} {unit} already, more than trainer.max_{unit}={limit}; "
                    f"choose trainer.max_{unit}={done} to judge it and more to train on"
                )
            if not self.measures_the_same:
                raise UserError(
                    f"{self.path} is trained for all of trainer.max_{unit}={limit} already, so nothing would be "
                    f"measured anew although {self._list(self.shown())}; choose a larger trainer.max_{unit}, or "
                    f"judge it with evaluate.py ckpt_path={self.path}"
                )

    def sentence(self) -> str | None:
        """What the user must know about scores of before; None if they still hold."""
        if self.measures_the_same:
            return None
        shown = self.shown()
        topics = list(dict.fromkeys(_topic(change.key) for change in shown))
        return f"{' and '.join(topics)} changed ({self._list(shown)}): best epoch and history start afresh"

    def shown(self) -> list[Change]:
        """The changes of what is measured, without those that only repeat another one in the callbacks."""
        found = self.of_kind(Kind.MEASURE)
        typed = {(c.key.rpartition(".")[2], str(c.before), str(c.now)) for c in found if _is_typed(c.key)}
        repeated = [
            not _is_typed(c.key) and (c.key.rpartition(".")[2], str(c.before), str(c.now)) in typed for c in found
        ]
        return [change for change, again in zip(found, repeated, strict=True) if not again]

    @staticmethod
    def _list(changes: list[Change]) -> str:
        more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        return ", ".join(map(str, changes[:_SHOWN])) + more

    def forget(self, checkpoint: dict[str, Any], callbacks: Iterable[L.Callback]) -> None:
        """Take out of a checkpoint what its callbacks remember of another measurement or attack.

        A callback's state is a score, or was chosen by one, unless it is known to belong to training alone. One that
        depends on something else says so in an attribute `forgets_on`, a set of kinds.

        Args:
            checkpoint: Is changed.
            callbacks: Those of the run that goes on.
        """
        states = checkpoint.get("callbacks")
        changed = {change.kind for change in self.changes}
        if not states or not changed & {Kind.MEASURE, Kind.ATTACK}:
            return
        callbacks = list(callbacks)
        forgotten = {callback.state_key for callback in callbacks if changed & _forgets_on(callback)}
        if Kind.MEASURE in changed:  # states of callbacks that are gone were scores too
            forgotten |= states.keys() - {callback.state_key for callback in callbacks}
        checkpoint["callbacks"] = {key: state for key, state in states.items() if key not in forgotten}

    def continues_in(self, folder: str | Path) -> bool:
        """Whether the checkpoint lies in a folder, so that the files there tell the past of this run."""
        return Path(self.path).resolve().is_relative_to(Path(folder).resolve())


def set_aside(path: str | Path, epoch: int) -> Path | None:
    """Give a file that is about to be replaced a name of its own, if it is there.

    Args:
        path: Of the file.
        epoch: The first epoch that does not belong to it.

    Returns:
        Its new path.
    """
    file = Path(path)
    if not file.is_file():
        return None
    target = file.with_stem(f"{file.stem}_before_epoch_{epoch}")
    number = 2
    while target.exists():
        target = file.with_stem(f"{file.stem}_before_epoch_{epoch}_{number}")
        number += 1
    os.replace(file, target)
    return target


def _forgets_on(callback: L.Callback) -> frozenset[Kind]:
    """The kinds of changes after which a callback's state is worth nothing."""
    if isinstance(callback, BaseFinetuning | Timer | WeightAveraging):
        return frozenset()
    declared: frozenset[Kind] = getattr(callback, "forgets_on", frozenset({Kind.MEASURE}))
    return declared


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Values by keys with dots; positions in lists are keys too."""
    if isinstance(node, Mapping):
        items = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple):
        items = [(str(position), value) for position, value in enumerate(node)]
    else:
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return found


def _same(a: Any, b: Any) -> bool:
    """Equality, of numbers as people type them: 8/255 and 0.031372549, inf and .inf."""
    if type(a) is type(b) and a == b:
        return True
    if any(value is None or isinstance(value, bool) for value in (a, b)):
        return False
    try:
        return parse_number(a, "") == parse_number(b, "")
    except UserError:
        return bool(a == b)


def _batches_do_not_matter(config: Mapping[str, Any]) -> bool:
    """Whether validation in other batches gives the same score: no budget is shared in them and none is left out."""
    attack, trainer = config.get("attack"), config.get("trainer")
    p = attack.get("p") if isinstance(attack, Mapping) else None
    limit = trainer.get("limit_val_batches") if isinstance(trainer, Mapping) else None
    return _same(p, "inf") and (limit is None or (isinstance(limit, float) and limit == 1))


def _is_scoreless(name: str, *configs: Mapping[str, Any]) -> bool:
    """Whether a callback, wherever it is configured, has nothing to do with scores."""
    nodes = [(config.get("callbacks") or {}).get(name) for config in configs]
    there = [node for node in nodes if isinstance(node, Mapping)]
    for node in there:
        target = str(node.get("_target_")).rpartition(".")[2]
        if target not in _SCORELESS and not (target in _CHECKPOINTS and node.get("monitor") is None):
            return False
    return bool(there)


def _is_typed(key: str) -> bool:
    """Whether a key is one that people type, and not one that follows from it."""
    return not key.startswith("callbacks.")


def _topic(key: str) -> str:
    """What a changed key is about, in words."""
    if key.endswith((".p", ".norm", ".delta")) and key.startswith(("attack.", "callbacks.adversary.attack.")):
        return "the threat"
    for start, topic in (
        ("callbacks.adversary", "the validation attack"),
        ("callbacks.checkpoint", "the choice of the best epoch"),
        ("data", "the data"),
        ("model", "the network"),
    ):
        if key.startswith(start):
            return topic
    return "the configuration"

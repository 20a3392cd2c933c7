"""A checkpoint, seen from the configuration that goes on with it: where it stands, what holds, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdro_train.training.resuming.comparison import Change, compare, list_of
from wdro_train.training.resuming.kinds import Kind
from wdro_train.utils.errors import UserError


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
    def changed(self) -> frozenset[Kind]:
        """The kinds of keys that are configured otherwise."""
        return frozenset(change.kind for change in self.changes)

    @property
    def measures_the_same(self) -> bool:
        """Whether scores of before can be compared with scores of now."""
        return Kind.MEASURE not in self.changed

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
                    f"measured anew although {list_of(self.shown())}; choose a larger trainer.max_{unit}, or "
                    f"judge it with evaluate.py ckpt_path={self.path}"
                )

    def sentence(self) -> str | None:
        """The warning that earlier scores cannot be compared with those to come; None if they can."""
        if self.measures_the_same:
            return None
        shown = self.shown()
        topics = list(dict.fromkeys(_topic(change.key) for change in shown))
        return f"{' and '.join(topics)} changed ({list_of(shown)}): best epoch and history start afresh"

    def shown(self) -> list[Change]:
        """The changes of what is measured, without those that only repeat another one in the callbacks."""
        found = self.of_kind(Kind.MEASURE)
        typed = {(c.key.rpartition(".")[2], str(c.before), str(c.now)) for c in found if _is_typed(c.key)}
        repeated = [
            not _is_typed(c.key) and (c.key.rpartition(".")[2], str(c.before), str(c.now)) in typed for c in found
        ]
        return [change for change, again in zip(found, repeated, strict=True) if not again]

    def continues_in(self, folder: str | Path) -> bool:
        """Whether the checkpoint lies in a folder, so that the files there tell the past of this run."""
        return Path(self.path).resolve().is_relative_to(Path(folder).resolve())


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

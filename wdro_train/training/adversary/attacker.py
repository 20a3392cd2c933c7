"""The training attack on one batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from wdro_train.attacks import Attack, AttackResult
from wdro_train.training.adversary.random_numbers import batch_generator
from wdro_train.training.batches import StepBatch
from wdro_train.utils.contract import already_checked
from wdro_train.utils.distributed import default_reducer
from wdro_train.utils.learnt import Stateful


@dataclass(frozen=True)
class Attacker:
    """Moves the images of a training batch, jointly over all ranks.

    Attributes:
        attack: Finds the images. What it has learnt from earlier batches, it keeps.
        seed: Seeds its random starts.
    """

    attack: Attack
    seed: int = 0

    def perturb(self, model: nn.Module, batch: StepBatch) -> AttackResult:
        """The images to train on.

        Args:
            model: Maps images in [0, 1] to logits.
            batch: This rank's share of the global batch.
        """
        with already_checked(batch.checked):
            return self.attack(
                model,
                batch.x,
                batch.y,
                weight=batch.weight,
                reducer=default_reducer(),
                generator=batch_generator(self.seed, batch),
            )

    def terms(self, found: AttackResult, batch: StepBatch) -> dict[str, Tensor]:
        """What is logged about an attack on a batch, as scalars whose mean over the ranks is that of the global batch.

        Args:
            found: What `perturb` returned.
            batch: What it was given.
        """
        reducer = default_reducer()
        return {
            "upsilon": found.upsilon,
            "spent": self.attack.ball.spent(found.distances, batch.weight, reducer),
            # A rank's share of a count times the number of ranks, so that the mean over ranks is the count.
            "zero_gradients": found.zero_gradients * reducer.world_size,
            "nonfinite_gradients": found.nonfinite_gradients * reducer.world_size,
        } | found.terms

    def state_dict(self) -> dict[str, Any]:
        """What the attack, or the scope of its Upsilon, has learnt from earlier batches."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with what they had learnt.

        Args:
            state_dict: From `state_dict`.
        """
        for name, part in self._stateful().items():
            if name in state_dict:
                part.load_state_dict(state_dict[name])

    def _stateful(self) -> dict[str, Stateful]:
        parts = {"attack": self.attack, "scope": getattr(self.attack, "scope", None)}
        return {name: part for name, part in parts.items() if isinstance(part, Stateful)}

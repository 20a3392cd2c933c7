"""The validation values of every epoch, so that those of the best one are at hand at the end."""

from __future__ import annotations

import lightning as L


class ValidationHistory(L.Callback):
    """Remembers `val/*` of each epoch; kept in checkpoints, so a resumed run knows its past.

    Attributes:
        epochs: Epoch -> logged values without the `val/` prefix.
    """

    def __init__(self) -> None:
        self.epochs: dict[int, dict[str, float]] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take this epoch's values."""
        if not trainer.sanity_checking:
            logged = trainer.callback_metrics.items()
            values = {key.removeprefix("val/"): float(v) for key, v in logged if key.startswith("val/")}
            self.epochs[trainer.current_epoch] = values

    def state_dict(self) -> dict[str, dict[int, dict[str, float]]]:
        """All epochs so far."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, dict[int, dict[str, float]]]) -> None:
        """Continue from a checkpoint."""
        self.epochs = state_dict["epochs"]

"""Checkpoints that are there whole or not at all, and that say which run wrote them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.fabric.utilities.types import _PATH

from wdro_train.utils.errors import UserError
from wdro_train.utils.files import replacing

LINEAGE_KEY = "wdro_train_lineage"


class ReplacingCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and moves it there in one step.

    Lightning's own writer prepares the file in the folder for temporary files. Where the run's folder is on another
    file system, as on most clusters, the file is then copied onto the target: a process killed in between, or a full
    disk, leaves a part of it, and the checkpoint that was there before is lost.

    Attributes:
        lineage: Names of the runs that led to this one, and its own at the end: a resumed run continues the line of
            the checkpoint that it was resumed from.
    """

    def __init__(self) -> None:
        self._own = uuid.uuid4().hex
        self.lineage = [self._own]

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What to write.
            path: The target.
            storage_options: None.

        Raises:
            UserError: The operating system refuses; the checkpoint that was there before is still there.
        """
        content = checkpoint | {LINEAGE_KEY: self.lineage}
        if storage_options is not None or "file" not in get_filesystem(path).protocol:
            super().save_checkpoint(content, path, storage_options)
            return
        with replacing(path) as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch stumbles over its own archive after a write that failed
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(
        self, path: _PATH, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint to resume from.

        Args:
            path: Of the checkpoint.
            map_location: Where its tensors go; None for the CPU.
            weights_only: Whether anything but tensors and plain values is refused.
        """
        content: dict[str, Any] = super().load_checkpoint(path, map_location or _stay, weights_only)
        self.lineage = [*content.get(LINEAGE_KEY, []), self._own]
        return content


def check_own(checkpoint: Mapping[str, Any], lineage: list[str], path: _PATH) -> None:
    """Refuse a checkpoint that another run has put in the place of this one's.

    Args:
        checkpoint: Its content.
        lineage: Of this run.
        path: Of the checkpoint.

    Raises:
        UserError: Another run wrote it.
    """
    if checkpoint.get(LINEAGE_KEY, lineage)[-1] not in lineage:
        raise UserError(
            f"{path} was replaced by another run while this one trained; train again in a folder of its own"
        )


def _stay(storage: Any, location: str) -> Any:
    return storage

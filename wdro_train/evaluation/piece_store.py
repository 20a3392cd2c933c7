"""Keep the finished pieces of an evaluation on disk, so that one that was killed goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from wdro_train.evaluation.digests import array_digest, digest
from wdro_train.evaluation.locks import SharedLock
from wdro_train.utils.files import cannot_write, replacing

Arrays = dict[str, NDArray[Any]]
_SEAL = "seal"
_SETTING = "store"  # the key of evaluate.py, and the argument of `robustness_curve`, that chooses the folder


class PieceStore:
    """The pieces of the stages of one evaluation: each is there whole and as it was made, or not at all.

    A piece carries a seal: digests of the identity of the evaluation, of the batch, and of the arrays. A piece whose
    seal is missing, or does not match, counts as absent. While a store is open, nobody removes its folder.

    Args:
        root: Folder for the stores of all evaluations.
        key: What all pieces depend on, as plain data from `identity`; another key is another folder.

    Raises:
        UserError: The folder cannot be written to.
    """

    def __init__(self, root: str | Path, key: dict[str, Any]) -> None:
        self.key = digest(key)
        self.folder = Path(root) / self.key[:32]
        self._told = False
        self._lock = SharedLock(self.folder.with_suffix(".lock"), setting=_SETTING)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.folder, error, _SETTING) from error

    def save(self, stage: str, piece: int, batch: str, arrays: Arrays) -> None:
        """Write a finished piece.

        Args:
            stage: Key of the stage, which tells its settings apart from others.
            piece: Number of the piece.
            batch: Digest of the images and labels that it was made from.
            arrays: The content of the piece.

        Raises:
            UserError: The folder cannot be written to.
        """
        plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # as memory, not as a view
        seal = self._seal(stage, piece, batch) | {"arrays": {name: array_digest(a) for name, a in plain.items()}}
        with replacing(self._path(stage, piece, batch), setting=_SETTING) as file:
            file.write(save(plain, metadata={_SEAL: json.dumps(seal)}))

    def load(self, stage: str, piece: int, batch: str, names: tuple[str, ...] | None = None) -> Arrays | None:
        """Read a piece, if it is there, unharmed, and made from this batch.

        Args:
            stage: As for `save`.
            piece: Number of the piece.
            batch: Digest of the images and labels that it is wanted for.
            names: Read only these of its arrays; None reads all.

        Returns:
            The arrays; None if the piece has to be made, or made again.
        """
        path = self._path(stage, piece, batch)
        try:
            if not path.exists():
                return None
            with safe_open(path, framework="numpy") as content:
                seal = json.loads((content.metadata() or {})[_SEAL])
                digests = seal.pop("arrays")
                arrays = {name: content.get_tensor(name) for name in names or digests}
            sound = seal == self._seal(stage, piece, batch)
            if sound and all(array_digest(array) == digests[name] for name, array in arrays.items()):
                return arrays
        except (OSError, SafetensorError, ValueError, TypeError, LookupError, AttributeError):
            pass
        self._tell(path)
        return None

    def close(self) -> None:
        """Keep the pieces; others may remove them from now on."""
        self._lock.release()

    def discard(self) -> bool:
        """Close the store, and remove all pieces unless somebody else uses them: the last one removes them.

        Returns:
            Whether they were removed.
        """
        return self._lock.release(last=lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def _seal(self, stage: str, piece: int, batch: str) -> dict[str, Any]:
        return {"key": self.key, "stage": stage, "piece": piece, "batch": batch}

    def _path(self, stage: str, piece: int, batch: str) -> Path:
        return self.folder / stage / f"{piece:06d}-{batch[:16]}.safetensors"

    def _tell(self, path: Path) -> None:
        """Warn once that something is computed again."""
        if not self._told:
            self._told = True
            warnings.warn(f"{path} is damaged, so it is computed again, as are others like it", stacklevel=4)


def concatenate(parts: list[Arrays], names: tuple[str, ...]) -> Arrays:
    """These arrays of all pieces, end to end along the last axis."""
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in names}

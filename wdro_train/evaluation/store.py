"""Finished pieces of an evaluation on disk, so that a killed one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class PieceStore:
    """Named pieces of named stages, each written in one move: a piece is there whole or not at all.

    Args:
        root: Folder for all evaluations.
        key: What the pieces depend on (plain data); another key is another folder.
    """

    def __init__(self, root: str | Path, key: dict[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True, default=str)
        self.folder = Path(root) / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "key.json").write_text(text)

    def has(self, stage: str, piece: int) -> bool:
        """Whether the piece was finished."""
        return self._path(stage, piece).is_file()

    def save(self, stage: str, piece: int, arrays: Arrays) -> None:
        """Write a finished piece."""
        path = self._path(stage, piece)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        with scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        scratch.replace(path)

    def load(self, stage: str, piece: int, names: tuple[str, ...] | None = None) -> Arrays:
        """Read a piece; only these arrays of it, if named."""
        with np.load(self._path(stage, piece), allow_pickle=False) as content:
            return {name: content[name] for name in names or content.files}

    def join(self, stage: str, pieces: int, names: tuple[str, ...]) -> Arrays:
        """These arrays of all pieces of a stage, end to end along the last axis."""
        parts = [self.load(stage, piece, names) for piece in range(pieces)]
        return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in names}

    def discard(self) -> None:
        """Remove everything, when the report is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, stage: str, piece: int) -> Path:
        return self.folder / stage / f"{piece:06d}.npz"

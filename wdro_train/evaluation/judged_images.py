"""The images on which networks are judged: decoded once, for all networks that are judged on them and all processes."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import lightning as L
from omegaconf import DictConfig

from wdro_train.data import ImageArrays, ImageSet
from wdro_train.data.decoded_once import decode, decoded, parts_of
from wdro_train.evaluation.locks import SharedLock
from wdro_train.evaluation.networks import JudgedNetwork, load_arrays
from wdro_train.evaluation.progress_bars import progress_display

_PREFIX = "images-"
_OF_TRAINING = ("seed", "augment", "batch_size", "eval_batch_size", "num_workers", "download")
"""Settings of this package's data modules that do not change which images are judged, nor their pixels."""


@dataclass
class _Held:
    """A set, where its decoded images are, and which of its parts this process has still to decode."""

    arrays: ImageSet
    folder: Path
    workers: int
    left: list[int] = field(default_factory=list)


class JudgedImages(AbstractContextManager["JudgedImages"]):
    """Loads and decodes the images of networks; images that lie in memory anyway stay there.

    Decoded images are in a folder beside the unfinished pieces, which all processes see; the last of them removes it.
    What processes that were killed have left is removed, too.

    Args:
        cfg: The composed configuration of `conf/evaluate.yaml`.
        fabric: Joins the ranks.
    """

    def __init__(self, cfg: DictConfig, fabric: L.Fabric) -> None:
        self.cfg, self.fabric = cfg, fabric
        self.folder = Path(cfg.store) / (_PREFIX + fabric.broadcast(uuid4().hex))
        self._lock: SharedLock | None = None
        self._held: dict[str, _Held] = {}

    def beginning(self, network: JudgedNetwork) -> ImageSet:
        """The images of a network, of which the first few may be asked for.

        Args:
            network: Its configuration says which images.
        """
        held = self._of(network)
        if isinstance(held.arrays, ImageArrays):
            return held.arrays
        return decoded(held.arrays, held.folder)

    def whole(self, network: JudgedNetwork) -> ImageSet:
        """The images of a network; all ranks must call this, and wait for one another.

        Args:
            network: Its configuration says which images.
        """
        held = self._of(network)
        if held.left:
            with progress_display(len(held.left), quiet=not self.fabric.is_global_zero) as progress:
                progress("decoding images", 0)
                decode(
                    held.arrays,
                    held.folder,
                    held.left,
                    workers=held.workers,
                    progress=lambda done: progress("decoding images", done),
                )
            held.left = []
        self.fabric.barrier()
        return self.beginning(network)

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Remove the decoded images, unless another rank still uses them."""
        if self._lock is not None:
            self._lock.release(last=lambda: shutil.rmtree(self.folder, ignore_errors=True))

    def _of(self, network: JudgedNetwork) -> _Held:
        key = _which_images(network.config["data"])
        if key not in self._held:
            arrays = load_arrays(network.config, self.cfg.split, self.cfg.limit)
            workers = int(network.config["data"].get("num_workers", 0))
            held = _Held(arrays, self.folder / str(len(self._held)), workers)
            if not isinstance(arrays, ImageArrays):
                self._share_folder()
                parts = parts_of(arrays)
                if self.fabric.is_global_zero:
                    decode(arrays, held.folder, parts[:1])
                held.left = list(parts[1:][self.fabric.global_rank :: self.fabric.world_size])
                self.fabric.barrier()
            self._held[key] = held
        return self._held[key]

    def _share_folder(self) -> None:
        if self._lock is not None:
            return
        self._lock = SharedLock(_lock_of(self.folder), setting="store")
        if self.fabric.is_global_zero:
            for lock in self.folder.parent.glob(f"{_PREFIX}*.lock"):
                abandoned = lock.with_suffix("")
                if abandoned != self.folder:
                    SharedLock(lock, setting="store").release(last=_removal_of(abandoned))


def _removal_of(folder: Path) -> Any:
    return lambda: shutil.rmtree(folder, ignore_errors=True)


def _lock_of(folder: Path) -> Path:
    return folder.with_suffix(".lock")


def _which_images(data: dict[str, Any]) -> str:
    """What tells the images of one data configuration apart from others."""
    ours = str(data.get("_target_", "")).startswith("wdro_train.data.")
    return json.dumps({k: v for k, v in data.items() if not (ours and k in _OF_TRAINING)}, sort_keys=True, default=str)

"""Networks that a constructor of the user's own makes: what it takes from the images, and how its failure is told."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from wdro_train.config.constructors import CONSTRUCTORS
from wdro_train.config.one_sentence import one_sentence
from wdro_train.config.signatures import described, located, required
from wdro_train.utils.errors import chain

NOT_FOR_CONSTRUCTORS = ("weights", "weights_key", "normalize")
"""Keys of the group `model` that say what is done with the network, whatever makes it."""
OWN_WEIGHTS = "own"
"""Value of `model.weights` that says: the constructor has put the weights in."""
_OF_IMAGES = ("shape", "num_classes", "mean", "std")


def take_from_images(cfg: DictConfig) -> None:
    """Give a constructor of the user's own what it needs of the images and has not been given.

    These are the arguments without default that are called `shape`, `num_classes`, `mean` or `std`. What has a default
    keeps it: the network may have been trained with it.

    Args:
        cfg: The composed configuration, changed in place. Nothing happens where there are no images or no such network;
            a name that cannot be imported is refused later.
    """
    node, data = cfg.get("model"), cfg.get("data")
    if not isinstance(node, DictConfig) or not isinstance(data, DictConfig) or OmegaConf.is_missing(node, "_target_"):
        return
    target = node.get("_target_")
    if not isinstance(target, str) or target in CONSTRUCTORS["model"] or "_args_" in node:
        return
    try:
        wanted = required(located(target))
    except Exception:
        return
    with open_dict(node):
        for key in _OF_IMAGES:
            if key in wanted and key not in node and key in data:
                node[key] = f"${{data.{key}}}"


def refusals_of_own(arguments: Mapping[str, Any], *, known: bool) -> AbstractContextManager[None]:
    """What a constructor of the user's own raises, as one sentence that says what it takes.

    Args:
        arguments: `_target_` and the arguments that it is given.
        known: It is one of this package, whose own sentences are let through, or somebody else describes what it says.
    """
    if known:
        return nullcontext()

    def describe(error: Exception) -> str | None:
        cause = next((one for one in chain(error) if not isinstance(one, HydraException)), error)
        if isinstance(cause, MemoryError):
            return None
        target = str(arguments["_target_"])
        try:
            made = located(target)
            takes, file = described(made), inspect.getsourcefile(made)
        except Exception:
            takes, file = "arguments that nobody knows", None
        steps = traceback.extract_tb(cause.__traceback__)
        last = next((step for step in reversed(steps) if step.filename == file), None)
        place = f" at {Path(last.filename).name}, line {last.lineno}" if last is not None else ""
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items() if not key.startswith("_"))
        said = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
        return (
            f"model._target_={target} cannot be made with {given or 'no arguments'} ({said}{place}); it takes {takes}"
        )

    return one_sentence(describe)

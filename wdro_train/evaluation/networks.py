"""What is judged: a network, rebuilt from a checkpoint or trained elsewhere, and the images it is judged on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from wdro_train.config.build import build_data, build_model, plain, require_values
from wdro_train.config.checkpoint_files import BEST_CHECKPOINT
from wdro_train.config.constructors import CONSTRUCTORS, construct, permitted
from wdro_train.config.one_sentence import one_sentence
from wdro_train.config.own_networks import OWN_WEIGHTS
from wdro_train.config.resolvers import default_delta
from wdro_train.config.trusted import checked
from wdro_train.data import ImageSet
from wdro_train.theory.ball import WassersteinBall
from wdro_train.training.checkpoint import check_weights, read_checkpoint
from wdro_train.training.module import CONFIG_KEY, RobustClassifier
from wdro_train.utils.errors import UserError
from wdro_train.utils.plain_values import plain_values, without_special_keys
from wdro_train.utils.tensor_files import load_failure


@dataclass(frozen=True)
class JudgedNetwork:
    """A network that is to be judged, and the configuration that it was trained with.

    Attributes:
        model: The network, in evaluation mode, on the device on which it is judged.
        config: The training configuration kept in the checkpoint, with `model` and `data` as used here.
        name: A short name: the run folder, the file, or the network's name in its zoo.
        path: Where the weights came from: the checkpoint, the file, or the network's name in its zoo.
        allowed: Constructors that the user lets the configuration ask for, besides those of this package.
    """

    model: nn.Module
    config: dict[str, Any]
    name: str
    path: Path
    allowed: frozenset[str] = frozenset()

    def threat(
        self, *, p: float | str | None = None, norm: float | str | None = None, delta: float | str | None = None
    ) -> WassersteinBall:
        """The ball that the network was trained for, with what is given in place of its own.

        Args:
            p: Another Wasserstein order.
            norm: Another ground norm.
            delta: Another radius.

        Raises:
            UserError: What is not given does not stand in the configuration of the training.
        """
        given: dict[str, Any] = {"p": p, "norm": norm, "delta": delta}
        trained = self.config.get("attack")
        known = trained if isinstance(trained, Mapping) else {}
        if lacking := [key for key, value in given.items() if value is None and key not in known]:
            raise UserError(f"{self.path} does not say for which {' and '.join(lacking)} it was trained; give them")
        return WassersteinBall(**{key: known[key] if value is None else value for key, value in given.items()})

    def construct(self, group: str) -> Any:
        """An object of the training configuration, such as its attack.

        Args:
            group: `attack` or `objective`.

        Raises:
            UserError: The configuration asks for a constructor that is neither this package's nor allowed, or gives it
                arguments that it does not take.
        """
        node = checked(self.config.get(group), group, self.path, self.allowed)
        with _refusals_of(f"the {group} of {self.path}"):
            return construct(node, only=permitted(group, self.allowed))


def load_network(
    path: str | Path,
    *,
    model: DictConfig | None = None,
    data: DictConfig | None = None,
    device: torch.device | str = "cpu",
    allowed: Collection[str] = (),
) -> JudgedNetwork:
    """Rebuild the network of a checkpoint.

    A checkpoint is data: of what it asks for, only the constructors of this package are run that
    `wdro_train.config.constructors` lists, with plain values. What the user gives is not restricted.

    Args:
        path: A checkpoint written by `train.py`.
        model: Replaces the checkpoint's model configuration. A `_target_` alone, or arguments alone, replace those
            and keep the rest.
        data: The same for its data configuration.
        device: Where to put the network.
        allowed: Constructors that the checkpoint may ask for besides those of this package.

    Raises:
        UserError: No such checkpoint, another network's, a configuration that is no plain data, or a constructor that
            is neither this package's nor named by the user.
    """
    if model is not None and model.get("weights") not in (None, OWN_WEIGHTS):
        raise UserError(f"the weights are those of ckpt_path={path}; leave out model.weights={model.weights}")
    checkpoint = read_checkpoint(path)
    config = _with_given(checkpoint[CONFIG_KEY], {"data": data, "model": model}, path, allowed)
    with _refusals_of(f"the model of {path}"):
        only = permitted("model", allowed) if model is None else None
        network = build_model(OmegaConf.create(config["model"]), trained_elsewhere=False, only=only)
    module = RobustClassifier(network)
    check_weights(module, checkpoint, path)
    module.load_state_dict(checkpoint["state_dict"])
    return JudgedNetwork(module.model.eval().to(device), config, _name(Path(path)), Path(path), frozenset(allowed))


def network_trained_elsewhere(cfg: DictConfig, device: torch.device | str = "cpu") -> JudgedNetwork:
    """A network that was trained elsewhere, from the configuration groups `model` and `data` alone.

    Its threat is p = 2 in the l_inf norm with the dataset's radius, unless `attack` says otherwise.

    Args:
        cfg: With `model`, `data`, `attack` and `seed`.
        device: Where to put the network.

    Raises:
        UserError: No data, or a network without weights.
    """
    if cfg.get("data") is None:
        raise UserError("a model without checkpoint needs images to be judged on; give data=... too")
    node, data = cfg.model, cfg.data
    model = build_model(node)
    target, weights = node._target_.rpartition(".")[-1], node.get("weights")
    if weights is None and not node.get("pretrained", False):
        raise UserError(
            f"{target} has no weights; give model.weights=FILE, model.weights=own if its constructor puts them in, "
            "model.pretrained=true if it has such an argument, or ckpt_path=..."
        )
    if weights == OWN_WEIGHTS:
        _refuse_random(model, node)
    norm = "inf" if cfg.attack.norm is None else cfg.attack.norm
    delta = default_delta(data.delta, norm) if cfg.attack.delta is None else cfg.attack.delta
    threat = {"p": 2 if cfg.attack.p is None else cfg.attack.p, "norm": norm, "delta": delta}
    config = {"model": plain(node), "data": plain(data), "attack": threat, "seed": cfg.seed}
    name, source = _name_and_source(node, target)
    return JudgedNetwork(model.eval().to(device), config, name, Path(source))


def _refuse_random(model: nn.Module, node: DictConfig) -> None:
    """Refuse weights that the constructor is said to have put in if they are drawn at random: it is called once more.

    Raises:
        UserError: Two calls gave different weights.
    """
    first, second = model.state_dict(), build_model(node).state_dict()
    if first.keys() != second.keys() or any(not torch.equal(first[name], second[name]) for name in first):
        raise UserError(
            f"model.weights=own says that {node._target_} puts its weights in, but two calls of it gave "
            "different ones, so they are random; give model.weights=FILE"
        )


def _name_and_source(node: DictConfig, target: str) -> tuple[str, str]:
    """A short name of a network that was trained elsewhere, and where its weights come from, in words or as a path."""
    weights = node.get("weights")
    if weights == OWN_WEIGHTS and node._target_ in CONSTRUCTORS["model"]:
        return Path(node.path).stem, str(node.path)
    if weights == OWN_WEIGHTS:
        return target, f"{node._target_} (its own weights)"
    if weights is not None:
        return Path(str(weights)).stem, str(weights)
    name = str(node.get("name") or target)
    return name, name


def load_arrays(config: dict[str, Any], split: str, limit: int | None = None) -> ImageSet:
    """The images and labels of a split.

    Args:
        config: A configuration with a `data` entry.
        split: `train`, `val` or `test`.
        limit: First so many images only; None for all. Images in files come in an order that was drawn with seed 0,
            in which every beginning holds the classes in their proportions; see `wdro_train.data.describe_sample`.

    Raises:
        UserError: Unknown split, or no images.
    """
    if split not in ("train", "val", "test"):
        raise UserError(f"split={split!r} is unknown; choose train, val or test")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves no images; choose at least 1, or null for all")
    with _refusals_of("the data module"):
        data = build_data(OmegaConf.create({"data": config["data"]}))
    data.prepare_data()
    arrays = data.arrays(split)
    return arrays if limit is None else arrays.take(torch.arange(min(limit, len(arrays.labels))))


def _with_given(
    config: dict[str, Any], given: Mapping[str, DictConfig | None], path: str | Path, allowed: Collection[str]
) -> dict[str, Any]:
    """The configuration of a checkpoint with what the user gives in its place, all of it plain and checked.

    What comes from the checkpoint is checked before anything the user gives can refer to it, and the user's
    references find its values only, never its constructors.
    """
    used: dict[str, Any] = {}
    for group, node in given.items():
        own = None if node is None else OmegaConf.to_container(node, resolve=False)
        if isinstance(own, dict) and "_target_" in own and len(own) > 1:
            used[group] = own
            continue
        kept = _without_side_effects(config.get(group), group)
        if isinstance(own, dict) and isinstance(kept, dict):
            kept = {key: value for key, value in kept.items() if key not in own}
        needed = not (isinstance(own, dict) and "_target_" in own)
        used[group] = checked(kept, group, path, allowed, complete=needed) | (own if isinstance(own, dict) else {})
    if all(node is None for node in given.values()):
        return config | used
    context = OmegaConf.create(without_special_keys(config) | used)
    for group, node in given.items():
        if node is not None:
            require_values(context[group], group)
            try:
                used[group] = plain_values(OmegaConf.to_container(context[group], resolve=True), f"{group}=...")
            except OmegaConfBaseException as error:
                raise UserError(
                    f"{group}=... does not go with {path} ({load_failure(error)}); give data=... and model=... both"
                ) from error
    return config | used


def _without_side_effects(node: Any, group: str) -> Any:
    """The data configuration of a checkpoint, of which nothing is downloaded, and no training image is varied."""
    if group != "data" or not isinstance(node, dict):
        return node
    return node | {key: off for key, off in (("augment", None), ("download", False)) if key in node}


def _refusals_of(what: str) -> AbstractContextManager[None]:
    """One sentence for whatever a constructor raises on arguments that it does not take; Hydra wraps it up to 1.3."""

    def describe(error: Exception) -> str:
        text = " ".join(str(error.__cause__ or error).split())
        return f"{what} cannot be made as configured ({text}); choose the model and data it was trained with"

    return one_sentence(
        describe, (InstantiationException, TypeError, ValueError, LookupError, AttributeError, RuntimeError)
    )


def _name(path: Path) -> str:
    """The run folder of a checkpoint, or the file."""
    folder = path.resolve().parent
    return path.stem if folder.name != "checkpoints" else f"{folder.parent.parent.name}/{folder.parent.name}"


def newest_checkpoint(root: str | Path = "runs") -> str:
    """The best checkpoint of the newest training run.

    Raises:
        UserError: There is none.
    """
    found = sorted(Path(root).glob(f"**/{BEST_CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"no checkpoint given and none under {root}/; train one, or give ckpt_path=...")
    return str(found[-1])

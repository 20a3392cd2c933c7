"""What is judged: a network, rebuilt from a checkpoint or trained elsewhere, and a set of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from wdro_train.checkpoint import check_weights, read_checkpoint
from wdro_train.configuration import build_data, build_model, default_delta, plain
from wdro_train.data import ImageSet
from wdro_train.errors import UserError
from wdro_train.module import CONFIG_KEY, RobustClassifier


@dataclass(frozen=True)
class Subject:
    """A network and the configuration it was trained with.

    Attributes:
        model: In evaluation mode, on the device it is judged on.
        config: The training configuration kept in the checkpoint, with `model` and `data` as used here.
        name: A short name: the run folder, the file, or the network's name in its zoo.
        path: Where the weights came from: the checkpoint, the file, or the network's name in its zoo.
    """

    model: nn.Module
    config: dict[str, Any]
    name: str
    path: Path


def load_subject(
    path: str | Path,
    *,
    model: DictConfig | None = None,
    data: DictConfig | None = None,
    device: torch.device | str = "cpu",
) -> Subject:
    """Rebuild the network of a checkpoint.

    A checkpoint is data, but a `_target_` in it names code to run; only constructors of this package are run
    without being named on the command line.

    Args:
        path: A checkpoint written by `train.py`.
        model: Overrides the checkpoint's model configuration.
        data: Overrides its data configuration.
        device: Where to put the network.

    Raises:
        UserError: No such checkpoint, another network's, or a constructor from outside this package.
    """
    checkpoint = read_checkpoint(path)
    config = OmegaConf.create(checkpoint[CONFIG_KEY])
    if "augment" in config.data:
        config.data.augment = None  # of training images; nothing of it is run here
    for group, given in (("data", data), ("model", model)):
        if given is not None:
            config[group] = OmegaConf.create(OmegaConf.to_container(given, resolve=False))
            continue
        for target in _targets(OmegaConf.to_container(config[group], resolve=False)):
            if not target.startswith("wdro_train."):
                raise UserError(
                    f"{path} asks to run {target}; if you trust the checkpoint, name it yourself with "
                    f"{group}._target_=..."
                )
    network = build_model(config.model, trained_elsewhere=False)
    module = RobustClassifier(network)
    check_weights(module, checkpoint, path)
    module.load_state_dict(checkpoint["state_dict"])
    return Subject(module.model.eval().to(device), plain(config), _name(Path(path)), Path(path))


def foreign_subject(cfg: DictConfig, device: torch.device | str = "cpu") -> Subject:
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
    if node.get("weights") is None and not node.get("pretrained", False):
        raise UserError(
            f"{node._target_.rpartition('.')[-1]} has no weights; give model.weights=..., model.pretrained=true or "
            "ckpt_path=..."
        )
    norm = "inf" if cfg.attack.norm is None else cfg.attack.norm
    delta = default_delta(data.delta, norm) if cfg.attack.delta is None else cfg.attack.delta
    threat = {"p": 2 if cfg.attack.p is None else cfg.attack.p, "norm": norm, "delta": delta}
    config = {"model": plain(node), "data": plain(data), "attack": threat, "seed": cfg.seed}
    name = str(node.get("name") or node._target_.rpartition(".")[-1])
    path = Path(name if node.get("weights") is None else str(node.weights))
    return Subject(model.eval().to(device), config, name if node.get("weights") is None else path.stem, path)


def load_arrays(config: dict[str, Any], split: str, limit: int | None = None) -> ImageSet:
    """The images and labels of a split.

    Args:
        config: A configuration with a `data` entry.
        split: `train`, `val` or `test`.
        limit: First so many images only; None for all.

    Raises:
        UserError: Unknown split, or no images.
    """
    if split not in ("train", "val", "test"):
        raise UserError(f"split={split!r} is unknown; choose train, val or test")
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} leaves no images; choose at least 1, or null for all")
    data = build_data(OmegaConf.create({"data": config["data"]}))
    data.prepare_data()
    arrays = data.arrays(split)
    return arrays if limit is None else arrays.take(torch.arange(min(limit, len(arrays.labels))))


def _targets(node: Any) -> list[str]:
    """Every `_target_` in a configuration, however deep."""
    if isinstance(node, list):
        return [target for part in node for target in _targets(part)]
    if not isinstance(node, dict):
        return []
    own = [str(node["_target_"])] if "_target_" in node else []
    return own + [target for part in node.values() for target in _targets(part)]


def _name(path: Path) -> str:
    """The run folder of a checkpoint, or the file."""
    folder = path.resolve().parent
    return path.stem if folder.name != "checkpoints" else f"{folder.parent.parent.name}/{folder.parent.name}"


def newest_checkpoint(root: str | Path = "runs") -> str:
    """The best checkpoint of the newest training run.

    Raises:
        UserError: There is none.
    """
    found = sorted(Path(root).glob("**/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"no checkpoint given and none under {root}/; train one, or give ckpt_path=...")
    return str(found[-1])

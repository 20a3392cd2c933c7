"""Finds settings that fit one by one but not together, by making those objects that cost nothing and leave no trace."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from torch import nn

from wdro_train.attacks import MinimalDistance
from wdro_train.cli.error_messages import root_cause, sentence
from wdro_train.cli.schemas.fields import is_node
from wdro_train.config.one_sentence import one_sentence
from wdro_train.config.own_networks import NOT_FOR_CONSTRUCTORS
from wdro_train.evaluation.certified_curve import make_certificate
from wdro_train.evaluation.effort import chosen_effort
from wdro_train.evaluation.labels import check_labels, listed
from wdro_train.theory.ball import WassersteinBall
from wdro_train.training.build import check_adversary
from wdro_train.training.module import RobustClassifier
from wdro_train.utils.errors import UserError

# Constructors of these only remember their settings. Whatever else the user names is made once, in the run.
_HARMLESS = ("wdro_train.", "torch.", "torchvision.transforms.", "lightning.")
_NETWORKS = {f"wdro_train.models.{name}" for name in ("small_cnn", "resnet18", "preact_resnet18", "wide_resnet")}


def try_out(plain: Mapping[str, Any], command: str) -> None:
    """Make the parts of a run that are only settings, and forget them.

    Args:
        plain: The values of a configuration that fit their schema.
        command: `train` or `evaluate`.

    Raises:
        UserError: Settings that do not go together.
    """
    if is_node(plain.get("model")):
        _refuse_other_channels(plain["model"].get("normalize"), plain)
    for group in ("data", "model", "attack", "objective", "optimizer", "scheduler", "trainer"):
        if is_node(plain.get(group)) and _harmless(plain[group]):
            with _quiet(), _refusals_of(group, plain[group]):
                _TRIALS.get(group, _make)(plain)(plain[group])
    with _quiet(), _refusals_of("accelerator, devices", {}):
        (_judging if command == "evaluate" else _callbacks)(plain)


def _make(plain: Mapping[str, Any]) -> Callable[[Any], Any]:
    return instantiate


def _network(plain: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Build a network of this package on the meta device, which takes no memory for weights; others are not built."""

    def make(node: Mapping[str, Any]) -> None:
        mean, shape = node.get("mean"), node.get("shape")
        if mean is not None and shape is not None and len(mean) not in (1, shape[0]):
            raise UserError(
                f"model.mean={list(mean)} is for {len(mean)} channels, but data.shape={list(shape)} has {shape[0]}; "
                "give data.mean and data.std one number a channel"
            )
        if node["_target_"] in _NETWORKS:
            with torch.device("meta"):
                instantiate({key: value for key, value in node.items() if key not in NOT_FOR_CONSTRUCTORS})

    return make


def _refuse_other_channels(normalize: Any, plain: Mapping[str, Any]) -> None:
    """Refuse a normalisation for other channels, which would make colours of grey images."""
    shape = plain["data"].get("shape") if is_node(plain.get("data")) else None
    given = {len(values) for values in normalize or () if isinstance(values, list)}
    if shape is not None and given - {shape[0]}:
        raise UserError(
            f"model.normalize={normalize} is for {max(given)} channels, but data.shape={list(shape)} has {shape[0]}; "
            "give one number a channel"
        )


def _optimizer(plain: Mapping[str, Any]) -> Callable[[Any], Any]:
    return lambda node: instantiate(node)([nn.Parameter(torch.zeros(1))])


def _scheduler(plain: Mapping[str, Any]) -> Callable[[Any], Any]:
    def make(node: Mapping[str, Any]) -> None:
        known = _harmless(plain.get("optimizer"))
        parameters = [nn.Parameter(torch.zeros(1))]
        optimizer = instantiate(plain["optimizer"])(parameters) if known else torch.optim.SGD(parameters, momentum=0.9)
        steps = {"total_steps": 10} if node.get("total_steps", 0) is None else {}  # the run's own, when it is known
        instantiate({**node, **steps})(optimizer)

    return make


def _trainer(plain: Mapping[str, Any]) -> Callable[[Any], Any]:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }

    def make(node: Mapping[str, Any]) -> None:
        ranks = instantiate({**node, **quiet}).world_size
        for key in ("batch_size", "eval_batch_size"):
            size = plain["data"].get(key)
            if size is not None and size % ranks:
                raise UserError(f"data.{key}={size} does not divide over {ranks} ranks; choose a multiple of {ranks}")

    return make


def _callbacks(plain: Mapping[str, Any]) -> None:
    """The callbacks together with the objective."""
    nodes = [node for node in plain["callbacks"].values() if node is not None]
    if not all(map(_harmless, [*nodes, plain["objective"]])):
        return
    made = []
    for name, node in plain["callbacks"].items():
        if node is not None:
            with _refusals_of(f"callbacks.{name}", node):
                made.append(instantiate(node))
    check_adversary(made, RobustClassifier(nn.Identity(), objective=instantiate(plain["objective"])))


def _judging(plain: Mapping[str, Any]) -> None:
    """The threat, the distances and the certificate, as far as no checkpoint decides, the labels and the devices."""
    threat = {
        key: value for key, value in plain["attack"].items() if value is not None and key in ("p", "norm", "delta")
    }
    ball = WassersteinBall(**{"p": 2, "norm": 2, "delta": 0, **threat})
    MinimalDistance(norm=ball.norm, **chosen_effort(**plain["distances"]).search)
    certificate = plain["certificate"]
    if certificate is not None and certificate["method"] is not None:
        # Without a norm the checkpoint's threat decides, which may be the one norm that this method is for.
        norm = float("inf") if certificate["method"] == "exact" and "norm" not in threat else ball.norm
        # Their units are read with the ball of the checkpoint; here it matters whether there are any.
        radii = None if certificate.get("radii") is None else [1.0]
        make_certificate(**{**certificate, "radii": radii}, norm=norm, images=1, batch_size=1)
    if plain.get("labels") is not None:
        networks = 1 if plain.get("ckpt_path") is None else len(listed(plain["ckpt_path"]))
        check_labels(listed(plain["labels"]), networks)
    devices = plain["devices"]
    L.Fabric(accelerator=plain["accelerator"], devices=devices, strategy="auto" if devices == 1 else "ddp")


def _harmless(node: Any) -> bool:
    """Whether everything that a node describes only remembers its settings."""
    if isinstance(node, Mapping):
        if is_node(node) and not node["_target_"].startswith(_HARMLESS):
            return False
        return all(map(_harmless, node.values()))
    return all(map(_harmless, node)) if isinstance(node, list) else True


def _refusals_of(group: str, node: Mapping[str, Any]) -> AbstractContextManager[None]:
    """What a constructor says, as a sentence about its group."""

    def describe(error: Exception) -> str:
        cause = root_cause(error)
        reason = sentence(error) or " ".join(str(cause).split()) or type(cause).__name__
        target = str(node.get("_target_", "")).rpartition(".")[2]
        return f"{group}: {target or 'Lightning'} does not take these settings ({reason})"

    return one_sentence(describe)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning talks about devices whenever it makes a Trainer; it will do so again in the run."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


_TRIALS: dict[str, Callable[[Mapping[str, Any]], Callable[[Any], Any]]] = {
    "model": _network,
    "optimizer": _optimizer,
    "scheduler": _scheduler,
    "trainer": _trainer,
}

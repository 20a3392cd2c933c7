"""A file brings data, never code: what a configuration that was read from a file may hold, and may ask to run.

Whoever writes a checkpoint chooses every value in its configuration. Such a configuration is used as plain values
alone, nothing in it is resolved, and it names the objects it needs by exact names out of `CONSTRUCTORS`. What the user
types is not subject to this: naming a constructor on the command line is how a user trusts it.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pickle
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import load_file

from wdro_train.utils.errors import UserError

CONSTRUCTORS: Mapping[str, frozenset[str]] = {
    "model": frozenset(
        {
            "wdro_train.models.huggingface_model",
            "wdro_train.models.preact_resnet18",
            "wdro_train.models.resnet18",
            "wdro_train.models.robustbench_model",
            "wdro_train.models.small_cnn",
            "wdro_train.models.timm_model",
            "wdro_train.models.torchvision_model",
            "wdro_train.models.wide_resnet",
        }
    ),
    "data": frozenset(
        {
            "wdro_train.data.Digits",
            "wdro_train.data.GzipDataModule",
            "wdro_train.data.HuggingFaceDataModule",
            "wdro_train.data.ImageFolderDataModule",
            "wdro_train.data.TorchvisionDataModule",
        }
    ),
    "attack": frozenset(
        {
            "wdro_train.attacks.DualAscent",
            "wdro_train.attacks.Fixed",
            "wdro_train.attacks.KLPGD",
            "wdro_train.attacks.Lagrangian",
            "wdro_train.attacks.MinimalDistance",
            "wdro_train.attacks.Pool",
            "wdro_train.attacks.WFGSM",
            "wdro_train.attacks.WPGD",
            "wdro_train.attacks.WorstCase",
        }
    ),
    "objective": frozenset(
        {
            "wdro_train.objectives.Adversarial",
            "wdro_train.objectives.FirstOrderPenalty",
            "wdro_train.objectives.Mart",
            "wdro_train.objectives.Standard",
            "wdro_train.objectives.WTrades",
        }
    ),
}
"""What a file may ask to run, by the group of the configuration; no other group is built from a file."""

# Arguments that tell another library's loader where code, weights or secrets come from, whatever they are set to.
_LOADER_ARGUMENTS = frozenset(
    {
        "attn_implementation",
        "auto_map",
        "cache_dir",
        "checkpoint_path",
        "code_revision",
        "experts_implementation",
        "force_download",
        "gguf_file",
        "local_files_only",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "proxies",
        "quantization_config",
        "revision",
        "subfolder",
        "token",
        "trust_remote_code",
        "use_auth_token",
        "use_pretrained_backbone",
    }
)
_NO_OPTIONS = _LOADER_ARGUMENTS | {"pretrained", "weights"}
_REMOTE = re.compile(r"://|::|^hf[-_]hub:|^local-dir:|^[\\/]{2}", re.IGNORECASE)
_SPECIAL = re.compile(r"_.*_")
_WORD = re.compile(r"[\w.+-]*")
_PLAIN = (str, int, float, bool, type(None))
_MOST_VALUES = 100_000  # a configuration has hundreds; lists inside themselves have any number
_DEEPEST = 50
_LARGEST = 2**64
_SHOWN = 80
# Networks are callable, so that Hydra asks whether they may run.
_RETURNED = frozenset({"torch.nn.modules.container.Sequential", "robustbench.*"})
_WHITELIST = "_execution_whitelist_"  # of `instantiate`, from Hydra 1.4 on


class UnreadableError(ValueError):
    """A file that is not read; the message says why, in half a sentence."""


def plain_values(tree: Any, source: str | Path) -> dict[str, Any]:
    """A configuration of which nothing can be resolved or run: dicts, lists, strings, numbers, booleans and None.

    Args:
        tree: What was read.
        source: Where it comes from, for the error message.

    Returns:
        The same tree.

    Raises:
        UserError: It holds another kind of object, an interpolation (`${...}`), a value that is missing (`???`), or
            more values than any configuration.
    """
    if type(tree) is not dict:
        raise UserError(f"{source} holds no configuration but {_shown(tree)}; use a checkpoint that train.py wrote")
    count = 0
    waiting: list[tuple[str, Any, int]] = [("", tree, 0)]
    while waiting:
        where, value, depth = waiting.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise UserError(
                f"{source} holds a configuration of over {_MOST_VALUES} values or {_DEEPEST} levels; use a checkpoint "
                "that train.py wrote"
            )
        if type(value) is dict:
            for key, part in value.items():
                inside = f"{where}.{_shown(key)}" if where else _shown(key)
                waiting += [(inside, key, depth + 1), (inside, part, depth + 1)]
        elif type(value) is list:
            waiting += [(f"{where}[{index}]", part, depth + 1) for index, part in enumerate(value)]
        elif type(value) not in _PLAIN or (type(value) is int and abs(value) >= _LARGEST):
            raise UserError(
                f"{source} has {_shown(value)} at {where}, where a configuration has dicts, lists, strings, numbers, "
                "booleans and null; use a checkpoint that train.py wrote"
            )
        elif type(value) is str and ("${" in value or value == "???"):
            raise UserError(
                f"{source} has {_shown(value)} at {where}, and what a file refers to is not looked up; use a "
                "checkpoint that train.py wrote"
            )
    return tree


def checked(
    node: Any, group: str, source: str | Path, allowed: Collection[str] = (), *, complete: bool = True
) -> dict[str, Any]:
    """A group of a configuration from a file, of which every constructor is listed and every argument harmless.

    Args:
        node: The group as it is going to be used, with nothing left to be merged into it.
        group: Its name: a key of `CONSTRUCTORS`.
        source: Where it comes from, for the error message.
        allowed: Further constructors that the user has named.
        complete: False for arguments alone, where the user names what takes them.

    Returns:
        The same tree.

    Raises:
        UserError: See `plain_values`; or it asks for a constructor that is not listed, for special handling by Hydra
            (`_args_`, `_partial_` and others), or for arguments that say where other libraries load code from.
    """
    tree = plain_values(node, f"{source} ({group})")
    if complete and "_target_" not in tree:
        raise UserError(f"{source} does not say which {group} it is about; use a checkpoint that train.py wrote")
    for where, key, value in _entries(tree, group):
        if key == "_target_":
            if type(value) is not str or value not in (CONSTRUCTORS.get(group, frozenset()) | set(allowed)):
                raise UserError(
                    f"{source} asks to run {_shown(value)} as {where}, which is none of this package's constructors; "
                    f"if you trust it, name it yourself, with {_way_out(where, group)}"
                )
        elif _SPECIAL.fullmatch(key):
            raise UserError(
                f"{source} has the key {where}, which no file may set; use a checkpoint that train.py wrote"
            )
        elif key in _LOADER_ARGUMENTS:
            raise UserError(
                f"{source} sets {where}, which decides what another library downloads or runs; if you trust the file, "
                f"name the whole group yourself with {group}=..."
            )
        elif key == "options":
            _check_options(value, where, group, source)
        elif type(value) is str and _REMOTE.search(value):
            raise UserError(
                f"{source} points {where} at {_shown(value)}; if you trust the file, name it yourself with {group}=..."
            )
    return tree


def without_special_keys(tree: Any) -> Any:
    """The values of a file for a user's configuration to refer to: none of them is a constructor.

    Args:
        tree: Plain values.
    """
    if isinstance(tree, list):
        return [without_special_keys(part) for part in tree]
    if isinstance(tree, dict):
        return {key: without_special_keys(part) for key, part in tree.items() if not _SPECIAL.fullmatch(str(key))}
    return tree


def construct(node: Mapping[str, Any] | DictConfig, *, only: Collection[str] | None = None, **arguments: Any) -> Any:
    """The object that a configuration names, by Hydra's `instantiate`.

    Args:
        node: What the user typed, or what `checked` has let pass.
        only: From `permitted`, for what comes from a file: a Hydra that can be told what may run (from 1.4 on) then
            runs nothing else. None for what the user typed.
        **arguments: Further arguments, as objects.
    """
    if only is not None and _WHITELIST in inspect.signature(instantiate).parameters:
        arguments[_WHITELIST] = sorted(only)
    return instantiate(node, **arguments)


def permitted(group: str, allowed: Collection[str] = ()) -> frozenset[str]:
    """What may run while a group of a file is built, for Hydra: constructors, and the classes of what they return.

    Args:
        group: A key of `CONSTRUCTORS`.
        allowed: Further constructors that the user has named; what they return is of their own package.
    """
    packages = {f"{name.partition('.')[0]}.*" for name in allowed}
    return CONSTRUCTORS[group] | {_defined_as(name) for name in CONSTRUCTORS[group]} | {*allowed} | packages | _RETURNED


def _defined_as(name: str) -> str:
    """The name of one of `CONSTRUCTORS` in the module that defines it: attacks are callable, and of that class."""
    package, _, last = name.rpartition(".")
    made = getattr(importlib.import_module(package), last)
    return f"{made.__module__}.{made.__qualname__}"


def read_tensors(file: Path) -> Any:
    """The tensors and plain values in a file of `torch.save` or safetensors; nothing in the file is run.

    Args:
        file: With the ending `.safetensors`, or else written by `torch.save`.

    Raises:
        UnreadableError: It is damaged, or holds more than that.
    """
    try:
        return (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a damaged or hostile file can raise anything
        raise UnreadableError(reason(error)) from error


def reason(error: Exception) -> str:
    """Why another library did not load a file, without its advice on how to load it all the same.

    Args:
        error: Raised by `torch.load` or by a library that calls it.
    """
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text or "safe_globals" in text:
        if named := re.search(r"GLOBAL ([\w.]+)", text):
            return f"it holds the Python object {named[1][:_SHOWN]}, and reading such objects can run code"
        return "it is damaged, or holds Python objects, and reading such objects can run code"
    return text.splitlines()[0] if text else type(error).__name__


def add_allow_option(parser: argparse.ArgumentParser) -> None:
    """The option with which a command line trusts constructors that a checkpoint names.

    Args:
        parser: Gets the option `--allow`, a list of names.
    """
    parser.add_argument(
        "--allow",
        type=lambda text: frozenset(filter(None, text.split(","))),
        default=frozenset(),
        metavar="NAMES",
        help="A checkpoint may use these constructors of yours, such as my_package.models.mlp,my_package.data.Mine.",
    )


def _check_options(options: Any, where: str, group: str, source: str | Path) -> None:
    """Refuse arguments for other libraries that are more than numbers, switches and words.

    Raises:
        UserError: Names the option.
    """
    if options is None:
        return
    if type(options) is not dict:
        raise UserError(f"{source} has {_shown(options)} as {where}; use a checkpoint that train.py wrote")
    for key, value in options.items():
        parts = value if type(value) is list else [value]
        plain = all(type(part) in _PLAIN and (type(part) is not str or _WORD.fullmatch(part)) for part in parts)
        if type(key) is not str or key.startswith("_") or key in _NO_OPTIONS or not plain:
            raise UserError(
                f"{source} sets {where}.{_shown(key)} to {_shown(value)}, and options of a file are numbers, switches "
                f"and words; if you trust the file, name the whole group yourself with {group}=..."
            )


def _entries(tree: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    """Place, key and value of everything in a tree; parts of a list have its key."""
    parts: Iterator[tuple[Any, Any]] = (
        iter(tree.items()) if isinstance(tree, dict) else iter(enumerate(tree)) if isinstance(tree, list) else iter(())
    )
    for key, value in parts:
        place = f"{where}.{_shown(key)}"
        yield place, str(key) if isinstance(tree, dict) else "", value
        yield from _entries(value, place)


def _way_out(where: str, group: str) -> str:
    """How a user names a constructor that a file asks for."""
    if group not in ("model", "data"):
        return "--allow"
    override = f"+{where}=..." if where == f"{group}._target_" else f"{group}=..."
    return f"{override} (evaluate.py) or --allow (the other commands)"


def _shown(value: Any) -> str:
    """A key or value of a file, for a message: short, on one line, and without control characters."""
    if type(value) is int and abs(value) >= _LARGEST:
        return "a number of more than 64 bits"
    if type(value) is str:
        text = value.encode("unicode_escape").decode()
    else:
        text = repr(value) if type(value) in _PLAIN else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

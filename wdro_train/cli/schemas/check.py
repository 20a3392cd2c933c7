"""Checks every value of a configuration before anything is made of it, and says what does not fit in one sentence."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from pydantic import BaseModel, ValidationError

from wdro_train.cli.did_you_mean import nearest
from wdro_train.cli.error_messages import sentence
from wdro_train.cli.schemas.constructors import COMMON, part_of
from wdro_train.cli.schemas.fields import SAID, is_node
from wdro_train.cli.schemas.top_level import TOP_LEVELS
from wdro_train.cli.schemas.trial import try_out
from wdro_train.config.own_networks import NOT_FOR_CONSTRUCTORS
from wdro_train.config.signatures import described, located, required, taken
from wdro_train.utils.errors import UserError
from wdro_train.utils.plain_values import SHOWN_CHARACTERS
from wdro_train.utils.renamed import present_name

_HYDRAS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
_OURS = {"model": NOT_FOR_CONSTRUCTORS}  # what is not handed to the constructor
_OWNER = {"data": "these images have", "model": "this model has"}
Path = tuple[str | int, ...]


class _Unknown:
    """Stands where a value could not be worked out."""

    def __repr__(self) -> str:
        return "???"


_UNKNOWN = _Unknown()


def check(cfg: DictConfig, command: str) -> None:
    """Refuse values that cannot work.

    Types, ranges and choices come first, then settings that a constructor does not take, values that could not be
    worked out of others, and at last combinations, by making what costs nothing. A value that was typed comes before
    those that follow from it.

    Args:
        cfg: The composed configuration, with or without Hydra's own part.
        command: `train` or `evaluate`.

    Raises:
        UserError: One sentence on the first value that does not fit.
    """
    with _Composed(cfg) as own:
        plain, derived, failures = resolve(own)
    text = refusal(plain, command, derived, failures)
    if text is not None:
        raise UserError(text)
    try_out(plain, command)


def refusal(
    plain: Mapping[str, Any], command: str, derived: Collection[Path] = (), failures: Mapping[Path, str] | None = None
) -> str | None:
    """The first value that does not fit its schema, in one sentence; None if all do.

    Args:
        plain: The values of a configuration.
        command: `train` or `evaluate`.
        derived: Where values follow from others.
        failures: What could not be worked out, with the reason.
    """
    wrong = list(_wrong(TOP_LEVELS[command], plain, ()))
    for path, node in _nodes(plain, ()):
        wrong += _wrong_node(path, node)
    if command == "train" or plain.get("ckpt_path") is None:  # a checkpoint has the arguments of its network
        wrong += _lacking(plain.get("model"))
    typed = [(path, text) for path, text in wrong if not _follows(path, derived)]
    return next((text for _, text in [*typed, *(failures or {}).items(), *wrong]), None)


class _Composed:
    """The task's own part of a configuration, with Hydra's part at hand for `${hydra:...}` as in a run."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def __enter__(self) -> DictConfig:
        self.before = HydraConfig.instance().cfg
        if "hydra" not in self.cfg:
            return self.cfg
        whole = self.cfg.copy()
        with open_dict(whole):
            whole.hydra.runtime.output_dir = "."  # where it will be is not decided yet
            HydraConfig.instance().set_config(whole)
            del whole["hydra"]
        return whole

    def __exit__(self, *_: object) -> None:
        HydraConfig.instance().cfg = self.before


def resolve(cfg: DictConfig) -> tuple[dict[str, Any], set[Path], dict[Path, str]]:
    """Plain values; where they follow from others; and what could not be worked out, with the reason.

    Args:
        cfg: The task's own part of a configuration.
    """
    derived: set[Path] = set()
    failures: dict[Path, str] = {}

    def value(node: DictConfig | ListConfig, key: Any, path: Path) -> Any:
        try:
            if OmegaConf.is_interpolation(node, key):
                derived.add(path)
            if OmegaConf.is_missing(node, key):
                owner = _OWNER.get(str(path[0]), "there is")
                failures[path] = f"{owner} no default for {_dotted(path)}; give {_dotted(path)}=..."
                return _UNKNOWN
            found = node[key]
        except Exception as error:
            reason = sentence(error) or " ".join(str(error).split())
            failures[path] = reason if "=" in reason else f"{_dotted(path)} cannot be worked out ({reason})"
            return _UNKNOWN
        return walk(found, path)

    def walk(node: Any, path: Path) -> Any:
        if isinstance(node, DictConfig):
            return {str(key): value(node, key, (*path, str(key))) for key in node}
        if isinstance(node, ListConfig):
            return [value(node, index, (*path, index)) for index in range(len(node))]
        return node

    found: dict[str, Any] = walk(cfg, ())
    return found, derived, failures


def _wrong(model: type[BaseModel], values: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """What does not fit a schema: where, and the sentence."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        for one in error.errors():
            where, given = (*path, *one["loc"]), one["input"]
            if one["type"] == SAID:
                if not _holds_unknown(given):
                    yield where, f"{_dotted(where)}={_shown(given)} {one['msg']}"
            elif one["type"] == "missing":
                yield where, f"{_dotted(where)} is missing; give {_dotted(where)}=..."
            elif not _holds_unknown(given):
                yield (
                    where,
                    f"{_dotted(where)}={_shown(given)} is not a group of settings; give {_dotted(where)}.<key>=...",
                )


def _nodes(values: Any, path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Everything that describes an object, outer ones first."""
    if is_node(values):
        yield path, values
    items = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield from _nodes(value, (*path, key))


def _wrong_node(path: Path, node: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """What does not fit the object that a node describes."""
    target, where = node["_target_"], (*path, "_target_")
    if not isinstance(target, str) or not target:
        yield where, f"{_dotted(where)}={_shown(target)} is not a name; give package.module.Constructor"
        return
    try:
        made = located(target)
    except Exception as error:
        reason = " ".join(str(error).split())
        renamed = present_name(target)
        fix = "give package.module.Constructor" if renamed == target else f"its name is now {renamed}"
        yield where, f"{_dotted(where)}={target} cannot be imported ({reason}); {fix}"
        return
    settings = {key: value for key, value in node.items() if key not in _HYDRAS}
    part = part_of(made) or (COMMON.get(str(path[0])) if len(path) == 1 else None)
    if part is not None and not node.get("_args_"):
        yield from _wrong(part, settings, path)
    parameters = taken(made)
    names = None if parameters is None else [parameter.name for parameter in parameters]
    ours = _OURS.get(str(path[0]), ())
    for key in settings:
        if names is not None and key not in (*names, *ours):
            known = nearest(key, names)
            hint = f"did you mean {known}?" if known else f"it takes {described(made)}"
            yield (*path, key), f"{_dotted((*path, key))} is not a setting of {_short(target)}; {hint}"


def _lacking(node: Any) -> Iterator[tuple[Path, str]]:
    """The arguments that the constructor of a network needs and is not given."""
    if not is_node(node) or node.get("_args_"):
        return
    target = node["_target_"]
    try:
        made = located(target)
    except Exception:  # it is refused by `_wrong_node`
        return
    for key in required(made):
        if key not in node or key in _OURS["model"]:
            text = f"model._target_={target} needs {key}; give model.{key}=... (it takes {described(made)})"
            yield ("model", key), text


def _follows(path: Path, derived: Collection[Path]) -> bool:
    return any(path[:length] in derived for length in range(1, len(path) + 1))


def _holds_unknown(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_unknown, value.values()))
    return any(map(_holds_unknown, value)) if isinstance(value, list) else value is _UNKNOWN


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _short(target: str) -> str:
    return target.rpartition(".")[2]


def _shown(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        text = f"[{','.join(map(_shown, value))}]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{key}: {_shown(one)}" for key, one in value.items()) + "}"
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."

"""What may have been meant by a key or an option that does not exist: its new name, or the one that is most like it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from wdro_train.cli import CONF

_METHODS = frozenset(
    {
        "awp",
        "ema",
        "first_order_penalty",
        "lagrangian_at",
        "mart",
        "mma",
        "one_step_at",
        "pgd_at",
        "standard",
        "trades",
        "udr_at",
        "w_fgsm_at",
        "w_pgd_at",
        "w_trades",
        "worst_case",
    }
)
"""Options of the group `method` that were options of `experiment` before."""

_PLUGINS = {
    "hydra/launcher": {"joblib": "sweep", "submitit_local": "sweep", "submitit_slurm": "sweep", "ray": "ray"},
    "hydra/sweeper": {"optuna": "sweep"},
}
"""Options that plugins of Hydra add, with the extra of this package that installs the plugin."""


def sentence(error: Exception, config_name: str, arguments: list[str]) -> str | None:
    """What is not there, and what may have been meant; None if the error is about something else.

    Args:
        error: Raised by Hydra while it composed the configuration.
        config_name: Of the configuration.
        arguments: As typed, without the program's name.
    """
    if isinstance(error, ValueError) and "Config group override" in str(error):  # which Hydra has no type for
        empty = next((argument for argument in arguments if argument.endswith("=null")), "null")
        return f"{empty} is no option of a group; name one, --help shows them"
    if not isinstance(error, ConfigCompositionException):
        return None
    renamed = {argument: name for argument in arguments if (name := new_option(argument)) is not None}
    if any(_is_about(error, argument) for argument in renamed):
        return ", and ".join(f"{argument} is now {name}" for argument, name in renamed.items())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        return _no_option(error.missing_cfg_file, error.options)
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0]
        if f"'{key}'" in str(error).partition("\n")[0]:
            known = _known(config_name, [a for a in arguments if a != argument and "=" in a])
            if argument.startswith("+") and key in known:
                return f"{argument}: {key} is there already; leave out the +"
            return f"{key} is not a key{_hint(key, known)} --help shows the groups, --cfg job the keys"
    return None


def new_option(argument: str) -> str | None:
    """An argument that chooses an option of a group which has another name now, under that name; else None.

    Args:
        argument: As typed; the value may be a list or a sweep.

    >>> new_option("experiment=pgd_at,trades")
    'method=pgd_at,trades'
    >>> new_option("+study=fashion_linf")
    'study=fashion_linf'
    >>> new_option("hydra=default")
    'hydra=train'
    >>> new_option("experiment=cifar10_resnet18")
    """
    key, _, value = argument.partition("=")
    if key == "experiment" and _METHODS & set(re.findall(r"\w+", value)):
        return f"method={value}"
    if key == "+study":
        return f"study={value}"
    return {"hydra=default": "hydra=train", "experiment=cifar10": "experiment=cifar10_resnet18"}.get(argument)


def _is_about(error: ConfigCompositionException, argument: str) -> bool:
    """Whether it is the option that this argument chooses which Hydra cannot find, or finds chosen twice."""
    group, _, value = argument.lstrip("+").partition("=")
    if isinstance(error, MissingConfigException):
        missing, _, option = (error.missing_cfg_file or "").rpartition("/")
        return missing == group and option in re.findall(r"\w+", value)
    return f"Multiple values for {group}." in str(error)


def _no_option(missing: str, options: Iterable[str]) -> str:
    """The sentence for an option that a group does not have.

    Args:
        missing: The group and the option, with a slash between them.
        options: Those that the group has.
    """
    group, _, option = missing.rpartition("/")
    if (renamed := new_option(f"{group}={option}")) is not None:  # in a file of the user's own
        return f"{group}={option} is now {renamed}"
    if (extra := _PLUGINS.get(group, {}).get(option)) is not None:
        return f"{group}={option} needs a plugin of Hydra; run pip install -e '.[{extra}]' to have it"
    known = [name for name in options if name != option]
    return f"{group}={option} is not an option{_hint(option, known, f'{group}=')} {group} can be {', '.join(known)}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like the given one; of dotted keys that end alike, the shortest.

    Args:
        word: As typed.
        known: Words to choose from.

    >>> nearest("atack.step", ["attack.steps", "attack.step_size"])
    'attack.steps'
    >>> nearest("lr", ["optimizer.lr", "model.width"])
    'optimizer.lr'
    """
    known = list(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    last = word.rpartition(".")[2]
    alike = [key for key in known if key.rpartition(".")[2] == last]
    if alike and not (found and difflib.SequenceMatcher(None, word, found[0]).ratio() > 0.85):
        return max(alike, key=lambda key: (difflib.SequenceMatcher(None, word, key).ratio(), -len(key)))
    return found[0] if found else None


def _hint(word: str, known: Iterable[str], prefix: str = "") -> str:
    found = nearest(word, known)
    return ";" if found is None else f"; did you mean {prefix}{found}?"


def _known(config_name: str, arguments: list[str]) -> list[str]:
    """Groups and dotted keys of the configuration, with as many of the other arguments as compose."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for overrides in ([a for a in arguments if not a.startswith("hydra")], []):
            try:
                cfg = compose(config_name, overrides)
            except HydraException:
                continue
            return [*_groups(loader), *_keys(cfg)]
    return []


def _groups(loader: ConfigLoader) -> list[str]:
    return loader.get_group_options("", ObjectType.GROUP)


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key in map(str, node):
        found.append(f"{prefix}{key}")
        value = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if isinstance(value, DictConfig) and value._is_none() is False and not value._is_interpolation():
            found += _keys(value, f"{prefix}{key}.")
    return found

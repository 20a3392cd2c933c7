"""The nearest key or option to one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from wdro_train.cli import CONF


def sentence(error: Exception, config_name: str, arguments: list[str]) -> str | None:
    """What is not there, and what may have been meant; None if the error is about something else.

    Args:
        error: Raised by Hydra while it composed the configuration.
        config_name: Of the configuration.
        arguments: As typed, without the program's name.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        known = [name for name in error.options if name != option]
        return f"{group}={option} is not an option{_hint(option, known, f'{group}=')} {group} can be {', '.join(known)}"
    if isinstance(error, ValueError) and "Config group override" in str(error):  # which Hydra has no type for
        empty = next((argument for argument in arguments if argument.endswith("=null")), "null")
        return f"{empty} is no option of a group; name one, --help shows them"
    if isinstance(error, ConfigCompositionException):
        for argument in arguments:
            key = argument.lstrip("+~").partition("=")[0]
            if f"'{key}'" in str(error).partition("\n")[0]:
                known = _known(config_name, [a for a in arguments if a != argument and "=" in a])
                if argument.startswith("+") and key in known:
                    return f"{argument}: {key} is there already; leave out the +"
                return f"{key} is not a key{_hint(key, known)} --help shows the groups, --cfg job the keys"
    return None


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

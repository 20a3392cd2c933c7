"""Answers `--help`: what a command does, its groups with their options, and the keys that people change most.

Hydra would answer the same, but copies the whole configuration once for every option and takes seconds over it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from string import Template

from omegaconf import DictConfig, OmegaConf

from wdro_train.cli import CONF


def wanted(arguments: list[str]) -> bool:
    """Whether help on the command's own configuration was asked for; that on another one Hydra gives itself.

    Args:
        arguments: As typed, without the program's name.

    >>> wanted(["--help"]), wanted(["--config-name=mine", "--help"])
    (True, False)
    """
    named = {argument.partition("=")[0] for argument in arguments}
    return not {"-h", "--help"}.isdisjoint(arguments) and named.isdisjoint({"-cn", "--config-name"})


def text(config_name: str, arguments: list[str]) -> str:
    """The help of a command: the template in its `conf/hydra/*.yaml` with the groups filled in.

    Args:
        config_name: Of the command's configuration.
        arguments: As typed, without the program's name; `--config-dir` may add groups and options to ours.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    theirs = parser.parse_known_args(arguments)[0].config_dir
    ours = _groups_of(config_name)
    options: dict[str, set[str]] = defaultdict(set)
    for folder in filter(None, (CONF, theirs)):
        for file in folder.glob("*/**/*.yaml"):
            group = file.parent.relative_to(folder).as_posix()
            if group in ours or (folder is theirs and not group.startswith("hydra")):
                options[group].add(file.stem)
    lines = (f"{group}: {', '.join(sorted(names))}" for group, names in sorted(options.items()))
    template = OmegaConf.load(CONF / "hydra" / f"{config_name}.yaml")
    return Template(str(template.help.template)).safe_substitute(APP_CONFIG_GROUPS="\n".join(lines))


def _groups_of(config_name: str) -> set[str]:
    """The groups that a command chooses options of, from the defaults list of its configuration."""
    defaults = OmegaConf.load(CONF / f"{config_name}.yaml").defaults
    chosen = (str(group) for entry in defaults if isinstance(entry, DictConfig) for group in entry)
    return {group.removeprefix("optional ") for group in chosen} - {"hydra", "local"}

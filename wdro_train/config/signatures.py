"""What the constructors that a configuration names take, by their signatures."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from pathlib import Path
from typing import Any

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@functools.cache
def located(target: str) -> Any:
    """What a dotted name stands for: as for Hydra, a name in a package comes before a module of the same name.

    A package that is nowhere else is looked for in the working folder, from now on in this process and in those that it
    starts: a command that pip has installed does not look there by itself.

    Args:
        target: Such as `package.module.Constructor`, as the user has named it.
    """
    name, *parts = target.split(".")
    if importlib.util.find_spec(name) is None and (Path(name).is_dir() or Path(f"{name}.py").is_file()):
        sys.path.append(str(Path.cwd()))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path.cwd()))))
    found = importlib.import_module(name)
    for part in parts:
        parent, name = name, f"{name}.{part}"
        if not hasattr(found, part):
            if not hasattr(found, "__path__"):
                raise AttributeError(f"{parent} has no {part}")
            importlib.import_module(name)
        found = getattr(found, part)
    return found


@functools.cache
def taken(made: Any) -> tuple[inspect.Parameter, ...] | None:
    """The named arguments of a constructor, those handed on to its base classes included; None if nobody knows.

    Args:
        made: A class or function.
    """
    classes = made.__mro__ if isinstance(made, type) else ()
    lines = [vars(one)["__init__"] for one in classes if "__init__" in vars(one)] or [made]
    found: list[inspect.Parameter] = []
    for line in lines:
        try:
            parameters = list(inspect.signature(line).parameters.values())
        except (TypeError, ValueError):
            return None
        found += [p for p in parameters if p.kind in _NAMED and p.name != "self"]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return tuple(found)
    return None


@functools.cache
def required(made: Any) -> tuple[str, ...]:
    """The names of the arguments that a constructor cannot do without, as far as its signature tells.

    Args:
        made: A class or function.
    """
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in parameters if p.kind in _NAMED and p.default is p.empty)


def described(made: Any) -> str:
    """The arguments of a constructor for a message, as `classes, hidden=32`.

    Args:
        made: A class or function.
    """
    parameters = taken(made)
    if parameters is None:
        return "arguments that its signature does not name"
    shown = (p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters)
    return ", ".join(shown) or "no arguments"

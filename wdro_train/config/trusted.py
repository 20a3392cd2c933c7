"""What the configuration in a file may ask to run: constructors that are listed, with harmless arguments.

A checkpoint names the network, the data, the attack and the objective that it needs. Whoever wrote it chose these names
and every argument, so each is looked at before anything is built.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from wdro_train.config.constructors import CONSTRUCTORS
from wdro_train.utils.errors import UserError
from wdro_train.utils.plain_values import PLAIN_TYPES, is_special_key, plain_values, shown

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
# An address of the internet, of another machine, or of a hub; paths on this machine are let pass.
_REMOTE = re.compile(r"://|::|^hf[-_]hub:|^local-dir:|^[\\/]{2}", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_WORD = re.compile(r"[\w.+-]*")


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
                    f"{source} asks to run {shown(value)} as {where}, which is none of this package's constructors; "
                    f"if you trust it, name it yourself, with {_way_out(where, group, value)}"
                )
        elif is_special_key(key):
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
                f"{source} points {where} at {shown(value)}; if you trust the file, name it yourself with {group}=..."
            )
    return tree


def _check_options(options: Any, where: str, group: str, source: str | Path) -> None:
    """Refuse arguments for other libraries that are more than numbers, switches and words.

    Raises:
        UserError: Names the option.
    """
    if options is None:
        return
    if type(options) is not dict:
        raise UserError(f"{source} has {shown(options)} as {where}; use a checkpoint that train.py wrote")
    for key, value in options.items():
        parts = value if type(value) is list else [value]
        plain = all(type(part) in PLAIN_TYPES and (type(part) is not str or _WORD.fullmatch(part)) for part in parts)
        if type(key) is not str or key.startswith("_") or key in _NO_OPTIONS or not plain:
            raise UserError(
                f"{source} sets {where}.{shown(key)} to {shown(value)}, and options of a file are numbers, switches "
                f"and words; if you trust the file, name the whole group yourself with {group}=..."
            )


def _entries(tree: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    """Place, key and value of everything in a tree; parts of a list have its key."""
    parts: Iterator[tuple[Any, Any]] = (
        iter(tree.items()) if isinstance(tree, dict) else iter(enumerate(tree)) if isinstance(tree, list) else iter(())
    )
    for key, value in parts:
        place = f"{where}.{shown(key)}"
        yield place, str(key) if isinstance(tree, dict) else "", value
        yield from _entries(value, place)


def _way_out(where: str, group: str, value: Any) -> str:
    """How a user names a constructor that a file asks for."""
    name = value if type(value) is str and _NAME.fullmatch(value) else "..."
    if group not in ("model", "data"):
        return f"--allow {name}"
    override = f"{where}={name}" if where == "model._target_" else f"{group}=..."
    return f"{override} (evaluate.py) or --allow {name} (the other commands)"

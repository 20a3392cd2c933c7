"""What the code of a module is known by, so that results are not used again once a user has edited it."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from wdro_train.evaluation.digests import file_digest

_INSTALLED = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")})


@functools.cache
def source_of(module: str | None) -> Any:
    """What a module's code is: its version if it is installed, else a digest of its file and of what that imports.

    None if there is no file to read.
    """
    top = (module or "").partition(".")[0]
    if top in (__name__.partition(".")[0], "torch") or top in sys.stdlib_module_names - {"__main__"}:
        return "see code"
    files = dict(_files(module or "", set()))
    if not files:
        return None
    return [str(getattr(sys.modules.get(top), "__version__", None)), sorted(files.items())]


def _files(name: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Name and digest of a module's file and of those it imports, as far as they are not installed packages."""
    module = sys.modules.get(name)
    if module is None or name in seen:
        return
    seen.add(name)
    path = Path(getattr(module, "__file__", None) or "")
    if not path.is_file():
        return
    yield name, file_digest(path)
    if path.suffix == ".py" and not any(path.resolve().is_relative_to(folder) for folder in _INSTALLED):
        for imported in _imports(path, module):
            if imported.partition(".")[0] != __name__.partition(".")[0]:
                yield from _files(imported, seen) if _is_own(imported) else ()


def _imports(path: Path, module: ModuleType) -> Iterator[str]:
    """The modules that a source file names in its import statements."""
    package = getattr(module, "__package__", None) or ""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and (package or not node.level):
            relative = "." * node.level + (node.module or "")
            parent = importlib.util.resolve_name(relative, package) if node.level else relative
            yield parent
            yield from (f"{parent}.{alias.name}" for alias in node.names)


def _is_own(name: str) -> bool:
    """Whether a module is the user's, and not of an installed package."""
    path = getattr(sys.modules.get(name), "__file__", None)
    return path is not None and not any(Path(path).resolve().is_relative_to(folder) for folder in _INSTALLED)

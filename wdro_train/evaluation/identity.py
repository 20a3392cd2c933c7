"""What the numbers of an evaluation depend on, as one digest.

Finished pieces are used again only by an evaluation of the same identity: the same network, computing with the same
code, under the same settings. The images and labels are not part of it, as each piece carries a digest of its own
batch. What an object is made of is read from the object itself, so that a setting which is added later cannot be
forgotten here. Where something cannot be read, its description is never the same twice, and nothing kept is used.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_PACKAGE = Path(__file__).parents[1]
_PLAIN = (str, int, float, bool, type(None))
_MODULE_STATE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PYTHON_CLASS = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or in C since Python 3.12
_INSTALLED = tuple({Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")})


def identity(model: nn.Module, *, seed: int, device: torch.device) -> dict[str, Any]:
    """Everything that all pieces of an evaluation depend on, beside the images and the settings of their stage.

    Args:
        model: The network that is judged, with everything around it (`ExpectedLogits`, say).
        seed: Seeds the generators of the batches.
        device: Where it is computed; kinds of devices round differently.

    Returns:
        Plain data.
    """
    return {"network": describe(model), "code": code_identity(), "seed": seed, "device": device.type}


def code_identity(package: Path = _PACKAGE) -> dict[str, Any]:
    """The code that computes: version, revision and source files of this package, and the version of torch.

    Args:
        package: Folder of the source files; they may have been changed since the revision.

    Returns:
        Plain data.
    """
    sources = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        sources.update(f"{file.relative_to(package)}\0".encode() + _file_digest(file).encode())
    return {
        "version": package_version("wdro-train"),
        "revision": git_revision(),
        "sources": sources.hexdigest(),
        "torch": torch.__version__,
    }


def package_version(package: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision(*, dirty: bool = False) -> str | None:
    """The revision of this package's checkout; None outside one.

    Args:
        dirty: Add a + if files were changed since.
    """
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=_PACKAGE, capture_output=True, text=True, check=True)
        head = found.stdout.strip()
        if dirty:
            command = ["git", "status", "--porcelain", "-uno"]
            changed = subprocess.run(command, cwd=_PACKAGE, capture_output=True, text=True).stdout.strip()
            return head + ("+" if changed else "")
        return head
    except (OSError, subprocess.CalledProcessError):
        return None


def digest(described: Any) -> str:
    """SHA-256 of plain data, in hexadecimal."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def batch_digest(x: Tensor, y: Tensor) -> str:
    """SHA-256 of a batch's images and labels, their types and shapes included."""
    return digest([_tensor(x), _tensor(y)])


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 of an array's values, type and shape."""
    return digest([str(array.dtype), list(array.shape), _bytes_digest(array)])


def describe(value: Any) -> Any:
    """What an object is made of: its class, the code of that class, and all its attributes, as plain data.

    Args:
        value: A setting, an attack, a network, or a collection of them.
    """
    try:
        return _describe(value, {})
    except RecursionError:
        return _indescribable()


def _describe(value: Any, seen: dict[int, int]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, torch.dtype | torch.device | Path):
        return str(value)
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return array_digest(value)
    if isinstance(value, np.generic):
        return [str(value.dtype), value.item().__repr__()]
    if isinstance(value, type):
        return _class(value)
    if id(value) in seen:
        return {"seen": seen[id(value)]}
    seen[id(value)] = len(seen)
    if isinstance(value, Mapping):
        return [type(value).__name__, [[_describe(k, seen), _describe(v, seen)] for k, v in value.items()]]
    if isinstance(value, list | tuple):
        return [type(value).__name__, [_describe(part, seen) for part in value]]
    if isinstance(value, set | frozenset):
        return [type(value).__name__, sorted(json.dumps(_describe(part, seen)) for part in value)]
    if isinstance(value, nn.Module):
        return _module(value, seen)
    if isinstance(value, functools.partial):
        return ["partial", *(_describe(part, seen) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, MethodType):
        return ["method", _describe(value.__func__, seen), _describe(value.__self__, seen)]
    if isinstance(value, FunctionType):
        return _function(value, seen)
    if isinstance(value, BuiltinFunctionType | ModuleType):
        return [type(value).__name__, value.__name__]
    return _object(value, seen)


def _module(module: nn.Module, seen: dict[int, int]) -> dict[str, Any]:
    """Parameters, all buffers (also those that no checkpoint keeps), own attributes, hooks and submodules.

    Flags of training are left out: a network is judged in evaluation mode.
    """
    own = {key: value for key, value in vars(module).items() if key not in _MODULE_STATE}
    if isinstance(module, torch.fx.GraphModule):
        own = {"code": module.code}
    if isinstance(module, torch.jit.ScriptModule):
        own = {"code": str(module.inlined_graph)}
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return {
        "class": _class(type(module)),
        "tensors": [[name, _tensor(value)] for name, value in tensors.items()],
        "attributes": [[name, _describe(value, seen)] for name, value in sorted(own.items())],
        "hooks": [[_describe(hook, seen) for hook in vars(module).get(kind, {}).values()] for kind in _HOOKS],
        "children": [[name, _describe(child, seen)] for name, child in module.named_children()],
    }


def _object(value: Any, seen: dict[int, int]) -> Any:
    """Any other object, by its class and attributes; what is written in C hides its state, and is pickled as well."""
    names = {name for kind in type(value).__mro__ for name in _slots(kind)}
    own = {name: getattr(value, name) for name in names if hasattr(value, name)} | getattr(value, "__dict__", {})
    found = [_class(type(value)), [[name, _describe(own[name], seen)] for name in sorted(own)]]
    if not _hides_state(value):
        return found
    try:
        return [*found, hashlib.sha256(pickle.dumps(value)).hexdigest()]
    except Exception:  # whatever a foreign object raises, it cannot be read
        return _indescribable()


def _hides_state(value: Any) -> bool:
    """Whether an object may hold more than its attributes show, as what is written in C does."""
    kind: Any = type(value)
    if not all(one.__flags__ & _PYTHON_CLASS for one in kind.__mro__[:-1]):
        return True
    if any(name in vars(one) for one in kind.__mro__[:-1] for name in ("__reduce__", "__reduce_ex__")):
        return True
    try:
        value.__reduce_ex__(2)
    except Exception:  # "cannot pickle", or whatever a foreign object raises
        return True
    return False


def _slots(kind: type) -> Iterator[str]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return (name for name in names if name not in ("__dict__", "__weakref__"))


def _function(function: FunctionType, seen: dict[int, int]) -> Any:
    """A function by its name, code, defaults and what it has closed over."""
    closed = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    parts = [function.__defaults__, function.__kwdefaults__, closed]
    code = [_source(function.__module__), _bytecode(function.__code__)]
    return [f"{function.__module__}.{function.__qualname__}", code, [_describe(part, seen) for part in parts]]


def _is_filled(cell: CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a variable without a value yet
        return False


def _bytecode(code: CodeType) -> list[Any]:
    return [code.co_code.hex(), [_constant(value) for value in code.co_consts], list(code.co_names)]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return _bytecode(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _class(kind: type) -> list[Any]:
    """A class by its name and the source of all classes it inherits from; without source by the code of its methods."""
    found: list[Any] = []
    for one in kind.__mro__[:-1]:
        source = _source(one.__module__)
        if source is None:
            methods = {name: f for name, f in vars(one).items() if isinstance(f, FunctionType)}
            source = {name: _bytecode(methods[name].__code__) for name in sorted(methods)}
        found.append([f"{one.__module__}.{one.__qualname__}", source])
    return found


@functools.cache
def _source(module: str | None) -> Any:
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
    yield name, _file_digest(path)
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


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _bytes_digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _tensor(value: Tensor) -> list[Any]:
    kind = [str(value.dtype), str(value.layout), list(value.shape)]
    value = value.detach().cpu()
    value = value.dequantize() if value.is_quantized else value if value.layout == torch.strided else value.to_dense()
    data = value.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
    return [*kind, _bytes_digest(data.numpy())]


def _indescribable() -> str:
    return os.urandom(16).hex()

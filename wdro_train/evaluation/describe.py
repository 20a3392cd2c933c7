"""What an object computes, read from the object itself: its class, the code of that class, and its attributes.

A setting that is added to an attack later is part of the description without anybody thinking of it. Where something
cannot be read, its description is never the same twice, so that nothing which was kept for it is used again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wdro_train.evaluation.digests import array_digest, tensor_digest
from wdro_train.evaluation.source_code import source_of

_PLAIN = (str, int, float, bool, type(None))
_MODULE_STATE = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PYTHON_CLASS = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement, or in C since Python 3.12


def describe(value: Any) -> Any:
    """Describe what an object is made of, as plain data: its class, the code of that class, and all its attributes.

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
        return tensor_digest(value)
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
        "tensors": [[name, tensor_digest(value)] for name, value in tensors.items()],
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
    code = [source_of(function.__module__), _bytecode(function.__code__)]
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
        source = source_of(one.__module__)
        if source is None:
            methods = {name: f for name, f in vars(one).items() if isinstance(f, FunctionType)}
            source = {name: _bytecode(methods[name].__code__) for name in sorted(methods)}
        found.append([f"{one.__module__}.{one.__qualname__}", source])
    return found


def _indescribable() -> str:
    return os.urandom(16).hex()

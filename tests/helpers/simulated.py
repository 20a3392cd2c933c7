"""A second kind of device on a machine that has only a CPU.

Its tensors are of another device for everything that asks: they do not mix with the CPU's, numpy cannot read them,
and a process group that serves it refuses tensors of the CPU, as NCCL does. They are computed by the CPU in the end.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "simulated"
_BETWEEN = ("aten::copy_", "aten::_to_copy")  # what may see two devices at once
_CPU = torch.device("cpu")


class SimulatedTensor(torch.Tensor):
    """Says that it is somewhere else; `raw` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw):
        shape = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, raw.size(), device=torch.device(NAME, 0), **shape)

    def __init__(self, raw):
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _compute(operation, args, kwargs or {})


def _compute(operation, args, kwargs):
    name, leaves = operation._schema.name, tree_leaves((args, kwargs))
    ours = {id(leaf.raw): leaf for leaf in leaves if isinstance(leaf, SimulatedTensor)}
    strange = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, SimulatedTensor) and x.dim()]
    # An accelerator takes indices from the CPU.
    if ours and strange and name not in _BETWEEN and not name.startswith("aten::index"):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {NAME} and cpu")
    found = operation(*tree_map(_raw, args), **tree_map(_raw, kwargs))
    if name == "aten::copy_" and not isinstance(args[0], SimulatedTensor):
        return args[0]
    if name == "aten::_to_copy" and kwargs.get("device") is not None and kwargs["device"].type == "cpu":
        return found

    def wrapped(value):
        return SimulatedTensor(value) if isinstance(value, torch.Tensor) else value

    return tree_map(lambda value: ours[id(value)] if id(value) in ours else wrapped(value), found)


def _raw(value):
    if isinstance(value, SimulatedTensor):
        return value.raw
    if isinstance(value, torch.device) and value.type == NAME:
        return _CPU
    return _gloo(value)


def _gloo(value):
    """Collectives of the simulated device are done by a group of the CPU."""
    if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
        return _groups[-1].boxed()
    return value


_groups = []


def serve(group):
    """Let a process group of the CPU do the collectives of the simulated device."""
    _groups.append(group)


class _Module(backend_registration._DummyBackendModule):
    """What automatic mixed precision asks of a device."""

    @staticmethod
    def get_amp_supported_dtype():
        return [torch.float16, torch.bfloat16]


class _Constructors(TorchFunctionMode):
    """What torch makes from Python's numbers it makes on the CPU first."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor, torch.arange) and _is_ours(kwargs.get("device")):
            return function(*args, **kwargs | {"device": _CPU}).to(kwargs["device"])
        if function is torch.Tensor.tolist and isinstance(args[0], SimulatedTensor):
            return args[0].raw.tolist()
        return function(*args, **kwargs)


def _is_ours(device):
    return device is not None and torch.device(device).type == NAME


class Generator(torch.Generator):
    """`torch.Generator`, for the simulated device too."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, _CPU if _is_ours(device) else device)


def install():
    """Make the device known to torch, once a process."""
    if not hasattr(torch, NAME):
        # A module's weights become others of another type, instead of the same with other contents.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
        library = torch.library.Library("_", "IMPL")
        library.fallback(lambda operation, *args, **kwargs: _compute(operation, args, kwargs), "PrivateUse1")
        install.library = library
    return torch.device(NAME, 0)


constructors = _Constructors

"""Loading the weights that another program has trained into a network of this one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wdro_train.utils.errors import UserError
from wdro_train.utils.tensor_files import UnreadableError, read_tensors

# Under which keys programs keep the weights in their checkpoints.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema", "last", "best")
# What wrappers put before every name. "1." is the network after the normalisation in an `nn.Sequential`.
_PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "1.")
_NAMED = 3  # so many keys an error message names; a network has hundreds


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load weights that may carry other prefixes than the network's own names.

    A wrapper such as `nn.DataParallel`, `torch.compile` or a LightningModule puts a prefix before every name; names
    are compared without them. What an architecture lists as `unused_weights` is left out.

    Args:
        model: The network.
        path: A `.safetensors` file, or a state dict that `torch.load(..., weights_only=True)` reads, bare or inside
            a checkpoint.

    Raises:
        UserError: No such file, unreadable, or another network's: names missing and unexpected weights and shapes.
    """
    ours = model.state_dict()
    places = _bare(ours)
    unused = tuple(prefix for part in model.modules() for prefix in getattr(part, "unused_weights", ()))
    found = read_weights(path)
    theirs = {bare: found[name] for bare, name in _bare(found).items() if not (unused and bare.startswith(unused))}
    # Counters of batches are absent from old checkpoints and of no use in evaluation.
    needed = {bare: name for bare, name in places.items() if not bare.endswith("num_batches_tracked")}
    missing = [name for bare, name in needed.items() if bare not in theirs]
    unexpected = sorted(theirs.keys() - places.keys())
    misfits = [
        f"{name} has shape {tuple(theirs[bare].shape)}, not {tuple(ours[name].shape)}"
        for bare, name in places.items()
        if bare in theirs and theirs[bare].shape != ours[name].shape
    ]
    complaints = [
        f"{what} {_some(names)}"
        for what, names in (("it lacks", missing), ("it has the unexpected", unexpected), ("in it", misfits))
        if names
    ]
    if complaints:
        raise UserError(
            f"model.weights={path} does not fit this network: {'; '.join(complaints)}; "
            "choose the model and data it was trained with"
        )
    model.load_state_dict({name: theirs.get(bare, ours[name]) for bare, name in places.items()})


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, out of whatever wraps it.

    Args:
        path: See `load_weights`.

    Raises:
        UserError: No such file, unreadable, or without weights.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no file model.weights={path}; give a .safetensors file or a state dict")
    try:
        content: Any = read_tensors(file)
    except UnreadableError as error:
        raise UserError(
            f"model.weights={path} cannot be read ({error}); save it as .safetensors or with torch.save(state_dict)"
        ) from error
    lightning = isinstance(content, Mapping) and "pytorch-lightning_version" in content
    while isinstance(content, Mapping) and (inner := _wrapped(content)) is not None:
        content = inner
    found = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    found.pop("n_averaged", None)  # of `torch.optim.swa_utils.AveragedModel`
    if lightning and any(name.startswith("model.") for name in found):  # the rest are losses and metrics
        found = {name: value for name, value in found.items() if name.startswith("model.")}
    if not found:
        raise UserError(f"model.weights={path} holds no named weights; save it with torch.save(network.state_dict())")
    return found


def _wrapped(content: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The state dict inside a checkpoint, under the first key that usually holds one; None if there is none.

    Some programs keep a list, for cascades of networks (Wong and Kolter 2018); it is read if it holds one network.
    """
    inner = [content.get(key) for key in _WRAPPERS]
    alone = [value[0] if isinstance(value, list | tuple) and len(value) == 1 else value for value in inner]
    return next((value for value in alone if isinstance(value, Mapping)), None)


def _bare(names: Iterable[str]) -> dict[str, str]:
    """Names by what is left of them without the prefixes that all of them share."""
    bare = {name: name for name in names}
    while prefix := next((one for one in _PREFIXES if bare and all(name.startswith(one) for name in bare)), ""):
        bare = {short.removeprefix(prefix): name for short, name in bare.items()}
    return bare


def _some(names: Iterable[str]) -> str:
    """Names for an error message: the first three, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more

"""Loading the weights that another program has trained into a network of this one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from wdro_train.models.weight_forms import Fit, fits, places
from wdro_train.utils.errors import UserError
from wdro_train.utils.tensor_files import UnreadableError, read_tensors

_NAMED = 3  # so many keys an error message names; a network has hundreds
_LIGHTNING = "pytorch-lightning_version"  # a key of every checkpoint that Lightning writes


def load_weights(model: nn.Module, path: str | Path, key: str | None = None) -> None:
    """Load the weights of a file, whatever is wrapped around them and their names (see `weight_forms`).

    All of the network's weights have to be there, and nothing else beside them, but that a checkpoint of Lightning may
    also hold weights of losses and metrics: these are left out with a warning. Two different sets of weights that both
    fit are refused, unless `key` says which.

    Args:
        model: The network.
        path: A `.safetensors` file, or one that `torch.load(..., weights_only=True)` reads.
        key: Where in the file the weights are: keys and prefixes joined by dots, such as `ema` or
            `state_dict.backbone`. None to look everywhere.

    Raises:
        UserError: No such file, unreadable, another network's (names missing and unexpected weights and shapes), or
            several different ones.
    """
    content = _content(path)
    lightning = isinstance(content, Mapping) and _LIGHTNING in content
    if lightning and key is None and isinstance(content.get("state_dict"), Mapping):
        content = {"state_dict": content["state_dict"]}  # what else there is, averaging keeps for itself
    found = [fit for place in places(content) for fit in fits(model, place)] if _is_tree(content) else []
    if not found:
        raise UserError(f"model.weights={path} holds no named weights; save it with torch.save(network.state_dict())")
    chosen = [fit for fit in found if key is None or fit.where == key or fit.where.startswith(f"{key}.")]
    if not chosen:
        raise UserError(f"model.weights={path} has nothing under model.weights_key={key}; it has {_where(found)}")
    exact = [fit for fit in chosen if fit.is_exact and (lightning or key is not None or not fit.outside)]
    if not exact:
        raise _refusal(max(chosen, key=lambda fit: (fit.is_exact, *fit.likeness)), path)
    differing = [fit for fit in exact if not fit.equals(exact[0])]
    if differing:
        raise UserError(
            f"model.weights={path} has several networks that fit, under {_where([exact[0], *differing])}; choose one "
            "with model.weights_key=..."
        )
    if exact[0].outside and key is None:
        warnings.warn(f"model.weights={path}: left out {_some(exact[0].outside)}", stacklevel=2)
    model.load_state_dict(model.state_dict() | exact[0].weights)


def _content(path: str | Path) -> Any:
    """The tensors and plain values in a file.

    Raises:
        UserError: No such file, or unreadable.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no file model.weights={path}; give a .safetensors file or a state dict")
    try:
        return read_tensors(file)
    except UnreadableError as error:
        raise UserError(
            f"model.weights={path} cannot be read ({error}); save it as .safetensors or with torch.save(state_dict)"
        ) from error


def _is_tree(content: Any) -> bool:
    return isinstance(content, Mapping | list | tuple)


def _refusal(fit: Fit, path: str | Path) -> UserError:
    """What is wrong with the weights that come nearest to the network's."""
    if fit.is_exact and fit.where:
        return UserError(
            f"model.weights={path} has this network under {fit.where} and, beside it, {_some(fit.outside)}; if the "
            f"network needs none of that, give model.weights_key={fit.where}"
        )
    unexpected = [*fit.unexpected, *fit.outside]
    complaints = [
        f"{what} {_some(names)}"
        for what, names in (("it lacks", fit.missing), ("it has the unexpected", unexpected), ("in it", fit.misfits))
        if names
    ]
    return UserError(
        f"model.weights={path} does not fit this network: {'; '.join(complaints)}; "
        "choose the model and data it was trained with"
    )


def _where(found: Iterable[Fit]) -> str:
    """Where weights are, for a message."""
    return _some(dict.fromkeys(fit.where or "the top" for fit in found))


def _some(names: Iterable[str]) -> str:
    """Names for an error message: the first three, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
    return ", ".join(listed[:_NAMED]) + more

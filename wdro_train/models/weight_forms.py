"""Finding a network's weights among what another program has saved, whatever is wrapped around them and their names.

Programs put a state dict into dictionaries and lists, beside epochs, optimizers and averaged copies, and wrappers such
as `nn.DataParallel`, `torch.compile` or a LightningModule put prefixes before every name. A place in a file fits a
network if the names under one prefix are the network's own, with their shapes: nothing missing, nothing left over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Parts of names that stand for a wrapper, wherever they occur.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_COUNTS = frozenset({"n_averaged"})  # of `torch.optim.swa_utils.AveragedModel`, beside the weights
_DEEPEST = 6  # levels of dictionaries and lists that are looked into; programs use up to three
_TRIED = 8  # prefixes tried in one state dict; a network that is kept three times over has three


@dataclass(frozen=True)
class Place:
    """Named tensors somewhere in a file.

    Attributes:
        where: The keys that lead there, joined by dots; empty at the top.
        tensors: By name.
    """

    where: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """The weights under one prefix of a state dict, held against those of a network.

    Attributes:
        where: The keys that lead there and the prefix, joined by dots; empty for the names at the top as they are.
        weights: What goes into the network, by the network's own names.
        missing: Names of the network that are not there.
        unexpected: Names there, without the prefix, that the network does not have.
        misfits: What is there in another shape or kind of number, described.
        outside: Names of the same state dict that do not have the prefix.
    """

    where: str
    weights: dict[str, Tensor]
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        """Whether every weight of the network is there, and nothing else under the prefix."""
        return not (self.missing or self.unexpected or self.misfits)

    @property
    def likeness(self) -> tuple[int, int]:
        """How much of the network is there, and how little else: the largest is the one to talk about."""
        return len(self.weights) - len(self.misfits), -len(self.unexpected) - len(self.outside)

    def equals(self, other: Fit) -> bool:
        """Whether both put the same values into the network; NaN is the same as NaN."""
        return self.weights.keys() == other.weights.keys() and all(
            _equal(value, other.weights[name]) for name, value in self.weights.items()
        )


def places(content: Any, where: str = "", depth: int = 0) -> Iterator[Place]:
    """All state dicts in what a file holds, outer ones first; what belongs to optimizers is left out.

    Args:
        content: Dictionaries and lists of tensors and plain values.
        where: The keys that lead here.
        depth: So many levels have been looked into.
    """
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            yield Place(where, tensors)
        inner: Iterable[tuple[Any, Any]] = content.items()
    else:
        inner = enumerate(content)
    if depth == _DEEPEST:
        return
    for key, value in inner:
        if isinstance(value, Mapping | list | tuple) and "optim" not in str(key):
            yield from places(value, f"{where}.{key}" if where else str(key), depth + 1)


def fits(model: nn.Module, place: Place) -> Iterator[Fit]:
    """The weights under each prefix that could be the network's.

    Args:
        model: The network. What it lists as `unused_weights` is left out.
        place: From `places`.
    """
    ours = model.state_dict()
    own = _shortened(ours)
    unused = tuple(prefix for part in model.modules() for prefix in getattr(part, "unused_weights", ()))
    theirs = _canonical(place.tensors)
    for prefix in _prefixes(own, theirs):
        there = {short.removeprefix(prefix): name for short, name in theirs.items() if short.startswith(prefix)}
        there = {short: name for short, name in there.items() if not (unused and short.startswith(unused))}
        there = {short: name for short, name in there.items() if short not in _COUNTS}
        inside = {short: place.tensors[name] for short, name in there.items()}
        yield Fit(
            where=".".join(filter(None, (place.where, prefix.rstrip(".")))),
            weights={name: inside[short] for short, name in own.items() if short in inside},
            # Counters of batches are absent from old checkpoints and of no use in evaluation.
            missing=[n for short, n in own.items() if short not in inside and not n.endswith("num_batches_tracked")],
            unexpected=sorted(inside.keys() - own.keys()),
            misfits=[
                text
                for short, name in own.items()
                if short in inside and (text := _misfit(name, inside[short], ours[name])) is not None
            ],
            outside=[name for short, name in theirs.items() if not short.startswith(prefix) and short not in _COUNTS],
        )


def _misfit(name: str, theirs: Tensor, ours: Tensor) -> str | None:
    """What keeps a tensor from being the weight of a network; None if nothing does."""
    if theirs.layout != torch.strided or theirs.is_meta:
        return f"{name} is {'without values' if theirs.is_meta else 'sparse'}, not a tensor of numbers in full"
    if theirs.shape != ours.shape:
        return f"{name} has shape {tuple(theirs.shape)}, not {tuple(ours.shape)}"
    if theirs.is_floating_point() != ours.is_floating_point():
        return f"{name} has type {theirs.dtype}, not {ours.dtype}"
    return None


def _equal(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _prefixes(own: Iterable[str], theirs: Iterable[str]) -> list[str]:
    """What stands before names of the network, the most frequent first; what all names share, if none is there."""
    names, theirs = set(own), list(theirs)
    found: Counter[str] = Counter()
    for name in theirs:
        parts = name.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        found.update(name.removesuffix(ending) for ending in endings if ending in names)
    return [prefix for prefix, _ in found.most_common(_TRIED)] or [_shared(theirs)]


def _shortened(names: Iterable[str]) -> dict[str, str]:
    """A network's names without wrappers and without the parts that all of them begin with."""
    names = _canonical(names)
    shared = _shared(names)
    return {short.removeprefix(shared): name for short, name in names.items()}


def _canonical(names: Iterable[str]) -> dict[str, str]:
    """Names by what is left of them without the parts that stand for wrappers, unless these tell names apart."""
    names = list(names)
    bare = {".".join(part for part in name.split(".") if part not in _WRAPPERS): name for name in names}
    return bare if len(bare) == len(names) and "" not in bare else {name: name for name in names}


def _shared(names: Iterable[str]) -> str:
    """The parts with which all names begin, and the dot after them; what is left of a name is never empty."""
    split = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}." for part in shared)

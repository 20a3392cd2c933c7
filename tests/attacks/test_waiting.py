"""No step of an attack waits for the device, and every step takes as little arithmetic as it needs."""

import math
from collections import Counter

import pytest
import torch
from oracles import random_batch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wdro_train.attacks import WPGD, MinimalDistance
from wdro_train.utils import devices

INF = math.inf
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}  # operations
READS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}  # methods of tensors
SIZE = 36  # pixels of an image


class Operations(TorchDispatchMode):
    """Counts what makes the host wait for a device, and what goes through images pixel by pixel."""

    def __init__(self):
        super().__init__()
        self.waits, self.slow = Counter(), Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        by_mask = name.startswith("index") and any(leaf.dtype == torch.bool for leaf in tensors(args[1:]))
        self.waits[name] += name in WAITS or by_mask
        found = operation(*args, **(kwargs or {}))
        masks = name in ("where", "masked_fill", "masked_fill_")
        self.slow[name] += any(
            leaf.numel() >= 20 * SIZE and (masks or leaf.dtype == torch.bool) for leaf in tensors(found)
        )
        return found


class Reads(TorchFunctionMode):
    """Counts what brings numbers from tensors to Python."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        self.found[name] += name in READS
        return function(*args, **(kwargs or {}))


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def operations(attack):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 5))
    x, _ = random_batch(20)
    y = model(x).argmax(1)
    with Reads() as reads, Operations() as seen:
        attack(model, x, y)
    seen.waits = +(seen.waits + reads.found)
    seen.slow = +seen.slow
    return seen


def attacks(steps):
    for norm in (1, 2, INF):
        for p in (2, INF):
            yield f"W-PGD {p} {norm}", WPGD(p=p, norm=norm, delta=0.1, steps=steps)
        yield f"minimal distance {norm}", MinimalDistance(norm=norm, steps=steps)


@pytest.mark.parametrize("which", range(9))
def test_steps_do_not_wait_for_the_device(which, monkeypatch):
    """More steps take no more transfers to the host. On a CPU Newton's iterations look whether to stop, for nothing."""
    monkeypatch.setattr(devices, "may_look", lambda values: False)
    (name, few), (_, many) = list(attacks(2))[which], list(attacks(6))[which]
    waits = operations(few).waits
    assert waits, "what the attack begins with waits"
    assert operations(many).waits == waits, name


@pytest.mark.parametrize("which", [index for index, (name, _) in enumerate(attacks(1)) if not name.endswith(" 1")])
def test_steps_go_through_no_image_pixel_by_pixel(which):
    """Comparisons, masks and `torch.where` on whole images, which take a CPU ten times as long as arithmetic."""
    (name, few), (_, many) = list(attacks(2))[which], list(attacks(6))[which]
    assert operations(many).slow == operations(few).slow, name

"""Models with a known worst case, the reference network, and ranks that live in threads."""

import copy
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.theory.ground_norm import GroundNorm

REFERENCE = Path(__file__).parents[1] / "reference"


class Linear(nn.Module):
    """Logit k is <g_k, x>: with labels 0, 1, 2, ... every image has a gradient of its own."""

    def __init__(self, gradients):
        super().__init__()
        self.gradients = nn.Parameter(gradients.flatten(1))

    def forward(self, x):
        return x.flatten(1) @ self.gradients.T


def own_logit(logits, labels):
    """The loss under which `Linear` is J(x_i) = <g_i, x_i>."""
    return logits.gather(1, labels[:, None]).squeeze(1)


def linear_value(gradients, x):
    """<g_i, x_i> in float64."""
    return (gradients.double() * x.double()).flatten(1).sum(1)


def half_square(logits, labels):
    """J = ||z||^2 / 2."""
    return logits.square().sum(1) / 2


def small_network(seed=0, pixels=36, classes=5, batch_norm=False):
    """A smooth classifier on [B, 1, 6, 6]."""
    torch.manual_seed(seed)
    normalise = [nn.BatchNorm1d(32)] if batch_norm else []
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 32), *normalise, nn.Tanh(), nn.Linear(32, classes))


def random_batch(count, seed=0, side=6, classes=5):
    """Images [count, 1, side, side] in [0, 1], a third of whose pixels are 0 or 1, with labels."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.5 * torch.rand(count, 1, side, side, generator=generator) - 0.25).clamp(0, 1)
    return x, torch.randint(classes, (count,), generator=generator)


def norm(u, order):
    """||u_i||_order in float64, by the textbook."""
    return torch.linalg.vector_norm(u.detach().double().flatten(1), ord=order, dim=1)


def conjugate(e):
    return 1.0 if math.isinf(e) else math.inf if e == 1 else e / (e - 1)


def power_mean(values, e, weight=None):
    """(E v^e)^(1/e) in numpy's longest float."""
    v = np.asarray(values, dtype=np.longdouble)
    w = np.ones_like(v) if weight is None else np.asarray(weight, dtype=np.longdouble)
    v, w = v[w > 0], w[w > 0]
    return float(v.max()) if math.isinf(e) else float(((w * v**e).sum() / w.sum()) ** (1 / np.longdouble(e)))


@lru_cache
def reference_images():
    data = np.load(REFERENCE / "fashion_mnist_test_000_499.npz")
    return torch.tensor(data["images"]).float()[:, None] / 255, torch.tensor(data["labels"]).long()


@lru_cache
def reference_network(name):
    net = nn.Sequential(
        *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
    )
    net.load_state_dict(torch.load(REFERENCE / f"cnn_{name}.pt", weights_only=True))
    return net.eval()


def reference_records(name, kind):
    return json.loads((REFERENCE / f"cnn_{name}.json").read_text())[kind]


class ThreadReducer:
    """One rank of several that run in threads of this process."""

    def __init__(self, rank, world_size, slots, barrier):
        self.rank, self.world_size = rank, world_size
        self._slots, self._barrier = slots, barrier

    def gather(self, value):
        self._slots[self.rank] = value
        self._barrier.wait(timeout=60)
        stacked = torch.stack(list(self._slots))
        self._barrier.wait(timeout=60)
        return stacked


def on_ranks(world_size, run, model):
    """`run(reducer, copy of model)` on every rank at once; the results in rank order."""
    slots, barrier = [None] * world_size, threading.Barrier(world_size)
    with ThreadPoolExecutor(world_size) as pool:
        jobs = [
            pool.submit(run, ThreadReducer(rank, world_size, slots, barrier), copy.deepcopy(model))
            for rank in range(world_size)
        ]
        return [job.result() for job in jobs]


def further(one, s, model, x, y, points, distances, wanted, *, batch_size=None, **kwargs):
    """Points and distances after a further search, from those that are known before it."""
    known = NearestFlips(GroundNorm(s), model, x, y, batch_size)
    known.points, known.distances = points, distances
    with attack_mode(model):
        one(known, wanted, **kwargs)
    return known.points, known.distances

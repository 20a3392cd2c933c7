"""Every path on which ranks meet, on a device whose process group refuses tensors of the CPU.

A program of its own, as a process has only one such device: `python device_paths.py OUT` writes to OUT a JSON object
with an entry for every path, which is empty or says what went wrong. The device is an NVIDIA GPU with NCCL if there is
one, and a simulated one otherwise.
"""

import copy
import json
import math
import sys
import tempfile
import threading
import time
import traceback
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import simulated
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import SingleDeviceStrategy
from oracles import on_ranks, reference_images, reference_network
from shell import Arrays, adversary, classifier, fitted, loader, trainer
from torch import nn

from wdro_train.attacks import KLPGD, WFGSM, WPGD, WRM, BoundaryAttack, Lagrangian, MinimalDistance, Pool
from wdro_train.attacks.elimination import Elimination
from wdro_train.attacks.marginal_rounds import SomeImages
from wdro_train.attacks.nearby_rounds import Nearby
from wdro_train.attacks.search_network import SearchArithmetic
from wdro_train.certificates.named import named_certificate
from wdro_train.evaluation import robustness_curve
from wdro_train.evaluation.certified_curve import certified_curve, make_certificate
from wdro_train.evaluation.distances import find_distances
from wdro_train.evaluation.effort import UntilConverged, chosen_effort
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.first_order import first_order_rows
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.objectives import (
    Adversarial,
    ChecksNetwork,
    CrownIbp,
    FirstOrderPenalty,
    Ibp,
    Mart,
    Sabr,
    Standard,
    StatisticallyRobust,
    WTrades,
)
from wdro_train.theory.ball import WassersteinBall
from wdro_train.training.callbacks import DistributionalAdversary

THREAT = {"p": 2, "norm": "inf", "delta": 0.1}
ATTACKS = {
    "w_fgsm": partial(WFGSM, **THREAT),
    **{
        f"w_pgd, {keep}": partial(WPGD, **THREAT, steps=2, keep=keep, random_start=False)
        for keep in ("last", "best", "cheapest", "nearest")
    },
    "w_pgd, running scope": partial(WPGD, **THREAT, steps=2, random_start=True, scope="running"),
    "pool": lambda: Pool([WPGD(**THREAT, steps=2, loss=loss, random_start=False) for loss in ("ce", "redlr")]),
    "worst_case": partial(BoundaryAttack, **THREAT, steps=2, bisections=2),
    "lagrangian": partial(Lagrangian, **THREAT, steps=2),
    "kl_pgd": partial(KLPGD, **THREAT, steps=2),
    "wrm": partial(WRM, **THREAT, gamma=20, steps=2),
}
DISTANCES, VALIDATION = (
    MinimalDistance(norm="inf", steps=1),
    WPGD(**THREAT, steps=1, keep="cheapest", random_start=False),
)
TRACING = threading.Lock()  # a graph is read by changing `nn.Module` meanwhile, for all threads
SHORT = {f"limit_{stage}_batches": 1 for stage in ("train", "val", "test")} | {"num_sanity_val_steps": 0}
OBJECTIVES = [Standard(), Adversarial(), FirstOrderPenalty(**THREAT), WTrades(), Mart(), StatisticallyRobust()]
CERTIFIED = [Ibp, CrownIbp, Sabr]  # they learn, so each rank has one of its own
CERTIFICATES = [
    ("ibp", math.inf),
    ("crown_ibp", math.inf),
    ("crown", 2.0),
    ("alpha_crown", math.inf),
    ("lipschitz", 2.0),
]


class Refusing:
    """A reducer that refuses tensors of any other device."""

    def __init__(self, inner, device):
        self.inner, self.device = inner, device
        self.rank, self.world_size = inner.rank, inner.world_size

    def gather(self, value):
        assert value.device.type == self.device.type, f"a collective on {value.device} instead of {self.device}"
        return self.inner.gather(value)


def compare(run, device, network=None):
    """`run(reducer, network)` on two ranks of the device and of the CPU gives the same."""
    network = reference_network("adversarial") if network is None else network

    def there(reducer, model):
        with mode(device):
            return run(Refusing(reducer, device), model.to(device))

    expected = on_ranks(2, run, network)
    for mine, theirs in zip(on_ranks(2, there, network), expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def mode(device):
    return simulated.constructors() if device.type == simulated.NAME else nullcontext()


def batches(size, n=30):
    x, y = reference_images()
    return list(zip(x[:n].split(size), y[:n].split(size), strict=True))


def share(reducer, place):
    return (part[reducer.rank : 16 : 2].to(place) for part in reference_images())


def evaluation(size, device):
    with tempfile.TemporaryDirectory() as folder:

        def everything(reducer, model):
            place = next(model.parameters()).device
            ours = Engine(model, batches(size), PieceStore(folder, {"at": place.type}), place, reducer=reducer)
            found = find_distances(ours, MinimalDistance(norm=math.inf, steps=2))
            grid = {"losses": ["ce"], "orders": [2.0, math.inf], "deltas": [0.1], "steps": 2}
            rows = first_order_rows(ours, norm=math.inf, box=True, **grid)
            sure = make_certificate("smoothing", norm=2.0, images=30, sigma=0.25, samples=20, alpha=0.1, batch_size=200)
            radii = certified_curve(ours, sure, "smoothing").curve.distances
            return found.distances, [row.pgd_acc for row in rows], (radii > 0).mean(keepdims=True).round(0)

        compare(everything, device)


def rounds(p, norm, device):
    """The search that finds its own end, from the first search on, by the gradients of a copy of the network."""
    with tempfile.TemporaryDirectory() as folder:

        def distances(reducer, model):
            place = next(model.parameters()).device
            parts = batches(4, 8)
            fast = SearchArithmetic(channels_last=True).network(model, parts[0][0].to(place))
            store = PieceStore(folder, {"at": place.type})
            ours = Engine(model, parts, store, place, reducer=reducer, fast=fast)
            auto = chosen_effort("auto").effort
            ball = WassersteinBall(p, norm, 0.1)
            kinds = {one.kind: one for turn in auto.turns(ball) for one in turn}
            turn = tuple(short(one) for one in kinds.values())
            effort = UntilConverged(lambda ball: (turn,), tolerance=1.0)  # two turns
            found = effort(ours, MinimalDistance(norm=norm, steps=10), ball)
            return found.distances, found.rivals

        compare(distances, device)


def short(one):
    """A further search of few steps."""
    if isinstance(one, Nearby):
        return replace(one, rounds=tuple(short(part) for part in one.rounds), band=100.0, most=1.0)  # some lie within
    if isinstance(one, Elimination):
        heats = tuple(replace(heat, steps=min(heat.steps, 11)) for heat in one.heats)
        last = tuple(replace(heat, share=1.0, search=replace(heat.search, queries=120)) for heat in one.last)
        return replace(one, heats=heats, last=last, rivals=2)
    if isinstance(one, SomeImages):
        return replace(one, one=short(one.one))
    return replace(one, steps=11)


def attack(make, device):
    def attacked(reducer, model):
        place = next(model.parameters()).device
        x, y = share(reducer, place)
        generator = torch.Generator(place).manual_seed(0)
        return [make()(model, x, y, reducer=reducer, generator=generator).distances.cpu()]

    if device.type == simulated.NAME:
        compare(attacked, device)
    else:  # whose random numbers are others
        on_ranks(
            2,
            lambda reducer, model: attacked(Refusing(reducer, device), model.to(device)),
            reference_network("adversarial"),
        )


def certificate(name, norm, device):
    def radii(reducer, model):
        x, _ = share(reducer, next(model.parameters()).device)
        with TRACING:
            return [named_certificate(name, norm)(model, x[:3], model(x[:3]).argmax(1)).radii.cpu().numpy()]

    torch.manual_seed(0)
    layers = [nn.AvgPool2d(4), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(50, 6), nn.ReLU()]
    compare(radii, device, nn.Sequential(*layers, nn.Linear(6, 10)).eval())  # small, since alpha_crown takes its time


def objective(make, device):
    def step(reducer, model):
        x, y = share(reducer, next(model.parameters()).device)
        objective = make()
        if isinstance(objective, ChecksNetwork):
            with TRACING:
                objective.check_network(model, x)
            reducer.gather(x.new_zeros(()))  # nobody goes on while another one still reads
        loss = objective(model, x, (x + 0.1).clamp(0, 1), y, reducer=reducer).loss
        loss.backward()
        return [loss.detach().cpu().numpy()]

    compare(step, device)


def training(callback, device):
    """Training, validation and test of the Lightning module, in the process group."""
    with mode(device):
        strategy = SingleDeviceStrategy(
            device=device, accelerator=Accelerator() if device.type == simulated.NAME else None
        )
        # Inference tensors and tensors that pretend do not go together.
        door = trainer([callback()], strategy=strategy, accelerator="auto", inference_mode=False, **SHORT)
        door.fit(classifier(fitted()), datamodule=Arrays(n=60, num_workers=0))
        assert door.callback_metrics["val/clean_acc"] > 0
        door.test(door.lightning_module, loader(20, 8, start=400), verbose=False)


def curve(device):
    """From Python, in the process group."""
    model = copy.deepcopy(reference_network("adversarial")).to(device)
    with mode(device):
        assert 0 < robustness_curve(model, batches(12), norm=2, steps=2).clean_accuracy < 1


def refusal(device):
    """The device is another one, and its group refuses the CPU's tensors."""
    with mode(device):
        value = torch.ones(2, device=device)
        dist.all_gather([torch.empty_like(value)], value)
        for wrong in (
            lambda: dist.all_gather([torch.empty(2)], torch.ones(2)),
            lambda: value + torch.ones(2),
            value.numpy,
        ):
            try:
                wrong()
            except (RuntimeError, TypeError):
                continue
            raise AssertionError("a tensor of the CPU was taken")


PATHS = {
    "refusal": refusal,
    "evaluation": partial(evaluation, 12),
    "evaluation, fewer batches than ranks": partial(evaluation, 30),
    **{
        f"rounds, W_{p:g}, norm {norm:g}": partial(rounds, p, norm)
        for p, norm in ((2, 1), (2, math.inf), (math.inf, math.inf))
    },
    "robustness_curve": curve,
    **{f"attack {name}": partial(attack, make) for name, make in ATTACKS.items()},
    **{f"objective {type(one).__name__}": partial(objective, lambda one=one: one) for one in OBJECTIVES},
    **{f"objective {make.__name__}": partial(objective, partial(make, **THREAT)) for make in CERTIFIED},
    **{f"certificate {name}": partial(certificate, name, norm) for name, norm in CERTIFICATES},
    "training, certified": partial(training, lambda: adversary(val_attack=None, certificate="ibp")),
    "training, w_pgd": partial(training, lambda: adversary(val_attack=None, distances=DISTANCES)),
    "training, worst_case": partial(
        training, lambda: DistributionalAdversary(BoundaryAttack(**THREAT, steps=1), val_attack=VALIDATION)
    ),
}


class Accelerator(L.pytorch.accelerators.Accelerator):
    """What Lightning wants to know about the simulated device."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    @staticmethod
    def parse_devices(devices):
        return [0]

    @staticmethod
    def get_parallel_devices(devices):
        return [torch.device(simulated.NAME, 0)]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return simulated.NAME

    def get_device_stats(self, device):
        return {}


def main(out):
    if torch.cuda.is_available():
        device = torch.device("cuda", 0)
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    else:
        device = simulated.install()
        torch.Generator = simulated.Generator
        dist.init_process_group(f"{simulated.NAME}:gloo", store=dist.HashStore(), rank=0, world_size=1)
        simulated.serve(dist.new_group(backend="gloo"))
    found = {}
    for name, path in PATHS.items():
        began = time.perf_counter()
        try:
            path(device)
            found[name] = ""
            print(f"{time.perf_counter() - began:6.1f} s  {name}", flush=True)
        except Exception:
            found[name] = traceback.format_exc()
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])

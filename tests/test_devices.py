"""Everything that meets other ranks does so on the device of the network; certificates compute in full precision."""

import math

import numpy as np
import pytest
import simulated
import torch
from oracles import ThreadReducer, on_ranks, random_batch, reference_images, reference_network
from torch import nn

from wdro_train.attacks import KLPGD, WFGSM, WPGD, Lagrangian, MinimalDistance, Pool, WorstCase
from wdro_train.certificates import LinearRelaxation, RandomizedSmoothing
from wdro_train.devices import resolve_device
from wdro_train.errors import UserError
from wdro_train.evaluation.certify import certified_curve, make_certificate
from wdro_train.evaluation.engine import Engine, find_distances
from wdro_train.evaluation.poster import poster_rows
from wdro_train.evaluation.store import PieceStore
from wdro_train.objectives import Adversarial, FirstOrderPenalty, Mart, Standard, WTrades


@pytest.fixture
def device(monkeypatch):
    """A device that is not the CPU; an accelerator, if there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    monkeypatch.setattr(torch, "Generator", simulated.Generator)
    return simulated.install()


class Refusing:
    """A reducer that refuses tensors of any other device, as a group of NCCL does."""

    def __init__(self, inner, device):
        self.inner, self.device = inner, device
        self.rank, self.world_size = inner.rank, inner.world_size

    def gather(self, value):
        assert value.device.type == self.device.type, f"a collective on {value.device} instead of {self.device}"
        return self.inner.gather(value)


def on_device(device, run):
    """`run(refusing reducer, network on the device)` on two ranks."""

    def rank(reducer, model):
        with simulated.constructors():
            return run(Refusing(reducer, device), model.to(device))

    return on_ranks(2, rank, reference_network("adversarial"))


def batches(n=30, size=12):
    x, y = reference_images()
    return list(zip(x[:n].split(size), y[:n].split(size), strict=True))


def test_the_device_is_another_one(device):
    with simulated.constructors():
        there = torch.ones(3, device=device)
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        with pytest.raises(AssertionError, match="a collective on cpu"):
            Refusing(ThreadReducer(0, 1, [None], None), device).gather(torch.zeros(1))


@pytest.mark.parametrize("size", [12, 30], ids=["batches", "fewer batches than ranks"])
def test_an_evaluation(device, tmp_path, size):
    def everything(reducer, model):
        place = next(model.parameters()).device
        ours = Engine(model, batches(size=size), PieceStore(tmp_path / place.type, {}), place, reducer=reducer)
        found = find_distances(ours, MinimalDistance(norm=math.inf, steps=3, restarts=2))
        grid = {"losses": ["ce"], "orders": [2.0, math.inf], "deltas": [0.1], "steps": 3}
        rows = poster_rows(ours, norm=math.inf, box=True, flips=[], **grid)
        settings = {"images": 30, "sigma": 0.25, "samples": 20, "alpha": 0.1, "batch_size": 200}
        radii = certified_curve(ours, make_certificate("smoothing", norm=2.0, **settings), "smoothing")[0].distances
        return found.distances, [row["pgd_acc"] for row in rows], radii

    here = on_ranks(2, everything, reference_network("adversarial"))
    for mine, theirs in zip(here, on_device(device, everything), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


THREAT = {"p": 2, "norm": "inf", "delta": 0.1}
ATTACKS = {
    "w_fgsm": lambda: WFGSM(**THREAT),
    **{f"w_pgd {keep}": lambda keep=keep: WPGD(**THREAT, steps=2, keep=keep) for keep in ("last", "best", "cheapest")},
    "random start": lambda: WPGD(**THREAT, steps=2, random_start=True, scope="running"),
    "pool": lambda: Pool([WPGD(**THREAT, steps=2, loss=loss) for loss in ("ce", "redlr")]),
    "worst case": lambda: WorstCase(**THREAT, steps=2, bisections=2),
    "lagrangian": lambda: Lagrangian(**THREAT, steps=2),
    "kl_pgd": lambda: KLPGD(**THREAT, steps=2),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(device, name):
    def attacked(reducer, model):
        place = next(model.parameters()).device
        x, y = (part[reducer.rank : 16 : 2].to(place) for part in reference_images())
        generator = torch.Generator(place).manual_seed(0)
        return ATTACKS[name]()(model, x, y, reducer=reducer, generator=generator).distances.cpu()

    here = on_ranks(2, attacked, reference_network("adversarial"))
    for mine, theirs in zip(here, on_device(device, attacked), strict=True):
        torch.testing.assert_close(theirs, mine)


OBJECTIVES = [Standard(), Adversarial(), FirstOrderPenalty(**THREAT), WTrades(), Mart()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: type(one).__name__)
def test_an_objective(device, objective):
    def step(reducer, model):
        place = next(model.parameters()).device
        x, y = (part[reducer.rank : 16 : 2].to(place) for part in reference_images())
        loss = objective(model, x, (x + 0.1).clamp(0, 1), y, reducer=reducer).loss
        loss.backward()
        return loss.detach().cpu()

    here = on_ranks(2, step, reference_network("adversarial"))
    torch.testing.assert_close(on_device(device, step), here)


# Precision


def precisions():
    backends = torch.backends
    operations = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    operations += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    return [operation.fp32_precision for operation in operations]


@pytest.fixture(params=["default", "high", "medium", "cudnn off", "one by one"])
def chosen(request):
    """What a user may have chosen; undone afterwards."""
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if request.param in ("high", "medium"):
        torch.set_float32_matmul_precision(request.param)
    if request.param == "cudnn off":
        torch.backends.cudnn.allow_tf32 = False
    if request.param == "one by one":
        torch.backends.cudnn.conv.fp32_precision = "tf32"
    yield precisions()
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn


@pytest.mark.parametrize(
    "certificate", [LinearRelaxation(norm=2), RandomizedSmoothing(sigma=0.1, total_images=4, n0=5, n=10)]
)
@pytest.mark.parametrize("fails", [False, True])
def test_certificates_compute_in_full_float32(chosen, certificate, fails):
    seen = []

    class Layer(nn.Flatten):
        pass

    network = nn.Sequential(Layer(), nn.Linear(36, 5))
    network[1].register_forward_hook(lambda *_: seen.append(precisions()))
    x, y = random_batch(4)
    if fails:
        with pytest.raises(UserError, match="labels range"):
            certificate(network, x, y + 5)
    else:
        certificate(network, x, y)
    assert seen
    assert all(found == ["ieee"] * 6 for found in seen)
    assert precisions() == chosen


def test_a_command_computes_where_it_is_told(device):
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device() == (device if torch.cuda.is_available() else torch.device("cpu"))
    for name in ("cuda:99", "nonsense", "cpu:x"):
        with pytest.raises(UserError, match=f"--device {name} is not available"):
            resolve_device(name)

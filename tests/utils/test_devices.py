"""Everything that meets other ranks does so on the device of the network; certificates compute in full precision."""

import json

import pytest
import torch
from device_paths import PATHS
from oracles import random_batch
from shell import ROOT, run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from wdro_train.attacks import MinimalDistance
from wdro_train.certificates import LinearRelaxation, RandomizedSmoothing
from wdro_train.evaluation.distances import find_distances
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.utils.devices import resolve_device
from wdro_train.utils.errors import UserError


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What went wrong on each path, from one process."""
    folder = tmp_path_factory.mktemp("device")
    done = run(ROOT / "tests/helpers/device_paths.py", folder / "out.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_ranks_meet_on_the_device_of_the_network(outcome, path):
    assert not outcome[path], outcome[path]


# Precision


def operations():
    backends = torch.backends
    on_gpu = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    return [*on_gpu, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]


def precisions():
    return [operation.fp32_precision for operation in operations()]


class Precisions(TorchDispatchMode):
    """What precisions matrices are multiplied in."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._schema.name in ("aten::mm", "aten::addmm", "aten::bmm"):
            self.found.append(precisions())
        return operation(*args, **(kwargs or {}))


@pytest.fixture(params=["default", "high", "medium", "cudnn off", "one by one"])
def chosen(request):
    """What a user may have chosen; undone afterwards."""
    matmul, before = torch.get_float32_matmul_precision(), precisions()
    legacy = torch.backends.cudnn.allow_tf32
    if request.param in ("high", "medium"):
        torch.set_float32_matmul_precision(request.param)
    if request.param == "cudnn off":
        torch.backends.cudnn.allow_tf32 = False
    if request.param == "one by one":
        torch.backends.cudnn.conv.fp32_precision = "tf32"
    yield precisions()
    torch.backends.cudnn.allow_tf32 = legacy  # else PyTorch finds that the two ways to choose disagree
    torch.set_float32_matmul_precision(matmul)
    for operation, precision in zip(operations(), before, strict=True):
        operation.fp32_precision = precision


@pytest.mark.parametrize(
    "certificate", [LinearRelaxation(norm=2), RandomizedSmoothing(sigma=0.1, total_images=4, n0=5, n=10)]
)
@pytest.mark.parametrize("fails", [False, True])
def test_certificates_compute_in_full_float32(chosen, certificate, fails):
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    x, y = random_batch(4)
    with Precisions() as seen:
        if fails:
            with pytest.raises(UserError, match="labels range"):
                certificate(network, x, y + 5)
        else:
            certificate(network, x, y)
    seen = seen.found
    assert seen
    assert all(found == ["ieee"] * 6 for found in seen)
    assert precisions() == chosen


def test_a_command_computes_where_it_is_told():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "nonsense", "cpu:x"):
        with pytest.raises(UserError, match=f"--device {name} is not available"):
            resolve_device(name)


def test_an_evaluation_computes_in_full_float32(chosen, tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    engine = Engine(network, [random_batch(4)], PieceStore(tmp_path, {}))
    with Precisions() as seen:
        find_distances(engine, MinimalDistance(norm=2, steps=2))
    assert seen.found
    assert all(found == ["ieee"] * 6 for found in seen.found)
    assert precisions() == chosen

"""The cost model: formulas by hand, operations against a real step, and collectives and waiting of two processes."""

import math
import os
import socket
import time
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import pytest
import torch
from lightning import Callback
from shell import Arrays, adversary, classifier, digits, network, trainer
from torch.utils.flop_counter import FlopCounterMode

from wdro_train.attacks import WFGSM, WPGD, WRM, BoundaryAttack, Lagrangian
from wdro_train.models import small_cnn
from wdro_train.objectives import Adversarial, FirstOrderPenalty, Ibp, Standard, StatisticallyRobust
from wdro_train.tools import cost_model
from wdro_train.tools.cost_model import Machine, NetworkFlops, Traffic, network_flops, step_time, traffic
from wdro_train.tools.step_cost import step
from wdro_train.training.callbacks import DistributionalAdversary
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

THREAT = {"p": 2, "norm": "inf", "delta": 0.1}
METHODS = {
    "standard": (None, Standard),
    "w_fgsm_at": (partial(WFGSM, **THREAT), Adversarial),
    "pgd_at": (partial(WPGD, **THREAT | {"p": "inf"}, steps=4, random_start=True), Adversarial),
    "w_pgd_at": (partial(WPGD, **THREAT, steps=4, random_start=True), Adversarial),
    "worst_case": (partial(BoundaryAttack, **THREAT, steps=4), Adversarial),
    "lagrangian_at": (partial(Lagrangian, **THREAT, steps=4), Adversarial),
    "wrm": (partial(WRM, **THREAT, steps=4), Adversarial),
    "sr_wdro": (partial(WPGD, **THREAT | {"p": "inf"}, steps=4, random_start=True), StatisticallyRobust),
    "first_order_penalty": (None, partial(FirstOrderPenalty, **THREAT)),
    "ibp": (None, partial(Ibp, **THREAT)),
}


class NoModules(nullcontext):
    """In place of PyTorch's tracker of modules, which cannot follow a gradient to an image inside the counter."""

    parents = frozenset({"Global"})


def test_operations_of_a_dense_network_by_hand():
    """A dense layer of n inputs and m outputs takes 2 n m operations forward, and as many back to inputs or weights."""
    found = network_flops(network(width=12), (1, 8, 8))
    first, second = 2 * 64 * 12, 2 * 12 * 10
    assert found.forward == first + second
    assert found.to_image == first + second
    assert found.to_weights == first + second + second  # nothing goes back from the first layer to the images
    assert found.parameters == 64 * 12 + 12 + 12 * 10 + 10


@pytest.mark.parametrize(("attack", "passes"), [(None, 1), (WFGSM(**THREAT), 2), (WPGD(**THREAT, steps=3), 4)])
def test_operations_of_a_real_step(attack, passes):
    torch.manual_seed(0)
    model = small_cnn((1, 8, 8), 10, mean=[0.3], std=[0.3], width=4)
    x, y = digits(6)
    objective = Standard() if attack is None else Adversarial()
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter, PassCounter(model) as counted:
        step(model, x, y, attack, objective)
    assert counted.pairs / 6 == passes
    assert counter.get_total_flops() == 6 * network_flops(model, (1, 8, 8)).of_step(passes)


def test_seconds_of_a_step_by_hand():
    work = NetworkFlops(forward=4, to_image=4, to_weights=7, parameters=1000)
    joined = Traffic(collectives=5, fixed=100, per_image=2, passes=3)
    found = step_time(work, 3, joined, 10, Machine(devices=4, flops=270, bandwidth=1000, latency=0.1))
    assert found.compute == pytest.approx(10 * (2 * 8 + 11) / 270)
    assert found.statistics == pytest.approx(5 * 0.1 + 3 * 120 / 1000)
    assert found.gradients == pytest.approx(2 * 3 / 4 * 4000 / 1000 + 0.1)
    assert found.seconds == found.compute + found.statistics + found.gradients
    alone = step_time(work, 3, joined, 10, Machine(devices=1, flops=270, bandwidth=1000, latency=0.1))
    assert alone.seconds == alone.compute == found.compute


@pytest.mark.slow
@pytest.mark.covers
def test_command(capsys):
    keys = ["model=resnet18", "data=imagenet", "data.root=nowhere", "method=pgd_at"]
    one, eight = cost_model.main([*keys, "--devices", "1,8", "--flops", "1e14", "--batch", "64"])
    # 1.8 G multiply-adds forward at 224 pixels (He et al. 2016, arXiv 1512.03385), twice that in operations.
    assert one.compute == pytest.approx(64 * (9 * 2 + 1) * 2 * 1.82e9 / 1e14, rel=0.02)
    assert one.seconds == one.compute == eight.compute < eight.seconds
    said = " ".join(capsys.readouterr().out.split())
    assert "9 passes of 3.6" in said
    assert "11,689,512 weights" in said
    assert "minutes an" in said
    cost_model.main(["--passes", "7.8"])
    assert "7.8 passes of" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"model=resnet81 does not fit"):
        cost_model.main(["model=resnet81"])
    for wrong in (["--flops", "0"], ["--latency", "nan"], ["--devices", "1,0"]):
        with pytest.raises(SystemExit):
            cost_model.main(wrong)


SLEEPS = (1.0, 1.5)


class Watch(Callback):
    """The collectives of the fourth step, after DDP has set up its buckets."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if index == 3:
            cpu = [torch.profiler.ProfilerActivity.CPU]
            self.profile = torch.profiler.profile(activities=cpu, record_shapes=True)
            self.profile.__enter__()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if index == 3:
            self.profile.__exit__(None, None, None)
            shapes = [(e.name, e.input_shapes) for e in self.profile.events() if e.name.startswith("gloo:")]
            self.found = sorted((name, math.prod(sides[0]) if sides else 0) for name, sides in shapes)


class Straggler(Callback):
    """A process that sleeps in every step, and when the steps began."""

    def __init__(self, seconds):
        self.seconds, self.began = seconds, []

    def on_train_batch_start(self, *_):
        self.began.append(time.monotonic())
        time.sleep(self.seconds)


def fit(callbacks, attack, objective, **limits):
    judge = adversary() if attack is None else DistributionalAdversary(attack())
    door = trainer([*callbacks, judge], devices=2, strategy="ddp", limit_val_batches=0, **limits)
    door.fit(classifier(objective=objective()), datamodule=Arrays(batch_size=16, num_workers=0))


def _rank(rank, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    seen = {}
    for name, method in METHODS.items():
        watch = Watch()
        fit([watch], *method, limit_train_batches=5)
        seen[name] = watch.found
    straggler = Straggler(SLEEPS[rank])
    fit([straggler], *METHODS["w_pgd_at"], limit_train_batches=6)
    torch.save((seen, straggler.began), out / f"{rank}.pt")
    torch.distributed.barrier()  # a rank that leaves while another one still listens aborts it
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, out), nprocs=2)
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_collectives_of_two_processes(ranks, name):
    """As many as the model says, of as many bytes: float64 statistics, the loss in float32, the gradients in one go."""
    attack, objective = METHODS[name]
    attack = WFGSM(**THREAT) if attack is None else attack()
    said = traffic(attack, objective(), (1, 8, 8), 10)
    gradients = network_flops(network(), (1, 8, 8)).parameters
    for seen, _ in ranks:
        here = list(seen[name])
        here.remove(("gloo:all_reduce", gradients))
        assert len(here) == said.collectives
        assert here.count(("gloo:barrier", 0)) == here.count(("gloo:all_reduce", 1)) == 1
        sent = sum(8 * size for kind, size in here if kind == "gloo:all_gather") + 4
        assert sent == said.sent(8)


@pytest.mark.slow
def test_a_step_lasts_as_long_as_its_slowest_process(ranks):
    """Sleeps of 1 s and 1.5 s a step: both processes take 1.5 s, not the mean of 1.25 s or the sum of 2.5 s."""
    for _, began in ranks:
        steps = sorted(later - sooner for sooner, later in pairwise(began[1:]))
        assert 1.5 <= steps[len(steps) // 2] < 2.5

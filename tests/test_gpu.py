"""What a GPU computes is what the CPU computes: attacks, certificates, metrics, evaluation, training, NCCL.

`pytest -m gpu` runs these tests where PyTorch sees a GPU; everywhere else they are skipped, which is no failure, as a
machine without a GPU cannot say anything about one.
"""

import copy
import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from oracles import reference_images, reference_network
from shell import ROOT, Arrays, adversary, classifier, fitted, loader
from shell import trainer as cpu_trainer
from torch.profiler import ProfilerActivity, profile

from wdro_train.attacks import KLPGD, WFGSM, WPGD, WRM, BoundaryAttack, Lagrangian, MinimalDistance, Pool
from wdro_train.certificates.named import named_certificate
from wdro_train.evaluation.distances import find_distances
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.first_order import first_order_rows
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.models import resnet18
from wdro_train.objectives import Adversarial, CrownIbp, Ibp, Mart, Sabr, Standard, WTrades
from wdro_train.training.callbacks import DistributionalAdversary
from wdro_train.utils.distributed import default_reducer
from wdro_train.utils.float32_precision import full_float32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
]
PLACES = ("cuda", "cpu")
THREAT = {"p": 2, "norm": "inf", "delta": 0.1}
ATTACKS = {
    "w_fgsm": partial(WFGSM, **THREAT),
    "w_pgd": partial(WPGD, **THREAT, steps=5, random_start=False, keep="cheapest"),
    "pool": lambda: Pool([WPGD(**THREAT, steps=3, loss=loss, random_start=False) for loss in ("ce", "redlr")]),
    "worst_case": partial(BoundaryAttack, **THREAT, steps=3, bisections=4),
    "lagrangian": partial(Lagrangian, **THREAT, steps=3),
    "kl_pgd": partial(KLPGD, **THREAT, steps=3),
    "wrm": partial(WRM, **THREAT, gamma=20, steps=3),
}


def images(count):
    return [part[:count] for part in reference_images()]


def on(device, run, model, *tensors):
    """What a run gives on a device, in full float32, as arrays on the CPU."""
    model = copy.deepcopy(model).to(device).eval()
    with full_float32():
        return [part.detach().double().cpu().numpy() for part in run(model, *(x.to(device) for x in tensors))]


def same(run, model, *tensors, share=1.0):
    """The GPU's numbers are the CPU's to 1e-4, on the given share of all values.

    A value may differ where an image lies on the edge of two branches of an algorithm, and rounding decides.
    """
    for ours, theirs in zip(on("cuda", run, model, *tensors), on("cpu", run, model, *tensors), strict=True):
        assert ours.shape == theirs.shape
        close = np.isclose(ours, theirs, rtol=1e-4, atol=1e-4)
        assert close.mean() >= share, f"{1 - close.mean():.1%} differ, by up to {np.nanmax(abs(ours - theirs))}"


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_distances(norm):
    """The mean of what the search finds: rounding grows along its steps, so single images may end elsewhere."""

    def run(model, x, y):
        return [MinimalDistance(norm=norm, steps=20)(model, x, y).distances.mean()]

    ours, theirs = (on(place, run, reference_network("adversarial"), *images(200)) for place in PLACES)
    np.testing.assert_allclose(ours, theirs, rtol=0.03)


@pytest.mark.parametrize("name", ["w_fgsm", "w_pgd", "pool", "worst_case", "wrm"])
def test_attacks(name):
    def run(model, x, y):
        return [ATTACKS[name]()(model, x, y).distances]

    same(run, reference_network("adversarial"), *images(100), share=0.95)


@pytest.mark.parametrize("name", ["lagrangian", "kl_pgd"])
def test_attacks_that_amplify_rounding_or_begin_at_random_points(name):
    """The root mean square distance: kinds of device draw other random starts, and a dual price adds rounding up."""

    def run(model, x, y):
        found = ATTACKS[name]()(model, x, y, generator=torch.Generator(x.device).manual_seed(0))
        return [found.distances.square().mean().sqrt()]

    ours, theirs = (on(place, run, reference_network("adversarial"), *images(500)) for place in PLACES)
    np.testing.assert_allclose(ours, theirs, rtol=0.05)


@pytest.mark.parametrize("name", ["ibp", "crown_ibp", "crown", "alpha_crown"])
def test_certificates(name):
    def run(model, x, y):
        return [named_certificate(name, math.inf)(model, x, y).radii]

    count = {"ibp": 50, "crown_ibp": 20, "crown": 2}.get(name, 1)
    same(run, reference_network("adversarial"), *images(count))


@pytest.mark.parametrize("objective", [Standard, Adversarial, WTrades, Mart, Ibp, CrownIbp, Sabr])
def test_objectives_and_their_gradients(objective):
    given = THREAT if objective in (Ibp, CrownIbp, Sabr) else {}

    def run(model, x, y):
        made = objective(**given)
        if hasattr(made, "check_network"):
            made.check_network(model, x)
        loss = made(model, x, (x + 0.1).clamp(0, 1), y).loss
        loss.backward()
        return [loss, *(parameter.grad for parameter in model.parameters())]

    same(run, reference_network("adversarial"), *images(32))


def test_evaluation(tmp_path):
    """Distances, the knapsack's accuracies and first-order rows of the evaluation's engine."""

    def judged(device):
        x, y = images(200)
        model = copy.deepcopy(reference_network("adversarial")).to(device)
        store = PieceStore(tmp_path, {"device": device})
        engine = Engine(model, [(x[:100], y[:100]), (x[100:], y[100:])], store, torch.device(device))
        found = find_distances(engine, MinimalDistance(norm=math.inf, steps=20))
        rows = first_order_rows(engine, norm=math.inf, losses=["ce"], orders=[2.0], deltas=[0.1], steps=5, box=True)
        return [found.curve.accuracy(0.1, p) for p in (1, 2, math.inf)] + [row.pgd_acc for row in rows]

    np.testing.assert_allclose(judged("cuda"), judged("cpu"), atol=0.0051)  # one image of 200


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(
    "callback",
    [
        adversary,
        lambda: adversary(val_attack=None, certificate="ibp"),
        lambda: adversary(val_attack=None, distances=MinimalDistance(norm="inf", steps=2)),
        lambda: DistributionalAdversary(BoundaryAttack(**THREAT, steps=1)),
    ],
    ids=["w_pgd", "certified", "distances", "worst_case"],
)
def test_training(precision, callback):
    """A fit, validation and test; the metrics are finite and the network that comes out is better than chance."""
    objective = Ibp(**THREAT) if precision == "32-true" else None
    for given in [{}] + ([{"objective": objective}] if objective else []):
        trainer = cpu_trainer([callback()], accelerator="gpu", precision=precision, max_epochs=2)
        trainer.fit(classifier(fitted(), **given), datamodule=Arrays(n=150, num_workers=0))
        assert trainer.callback_metrics["val/clean_acc"] > 0.3
        trainer.test(trainer.lightning_module, loader(31, 8, start=400), verbose=False)
        assert all(value.isfinite() for value in trainer.callback_metrics.values())


def test_metrics_are_those_of_the_cpu():
    """Validation of one network on both devices gives the same logged numbers."""

    def logged(accelerator):
        with full_float32():
            trainer = cpu_trainer([adversary(certificate="ibp")], accelerator=accelerator)
            [found] = trainer.validate(classifier(fitted()), loader(60, 16, start=300), verbose=False)
        return found

    ours, theirs = logged("gpu"), logged("cpu")
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-4), key


@pytest.mark.parametrize(
    "extra",
    [[], ["trainer.precision=bf16-mixed", "model=resnet18"], ["method=ibp"], ["method=worst_case"]],
    ids=lambda extra: " ".join(extra) or "default",
)
def test_the_commands(extra, tmp_path):
    """`python train.py trainer=gpu`, then `python evaluate.py` of what it left, as processes of their own."""
    short = [
        "trainer=gpu",
        "trainer.max_epochs=1",
        "+trainer.limit_train_batches=4",
        "logger=none",
        "callbacks.images=null",
    ]
    for command in (["train.py", *short, *extra], ["evaluate.py", "limit=50", "distances.steps=5", "poster=null"]):
        arguments = [sys.executable, ROOT / command[0], *command[1:]]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


def test_nccl_on_every_gpu():
    """Collectives of the reducer, on as many ranks as there are GPUs, one process each."""
    count = torch.cuda.device_count()
    torch.multiprocessing.spawn(_rank, args=(count,), nprocs=count)


def _rank(rank, count):
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method="tcp://127.0.0.1:29511", rank=rank, world_size=count)
    try:
        gathered = default_reducer().gather(torch.arange(3.0, device="cuda") + rank)
        assert gathered.device.type == "cuda"
        model = copy.deepcopy(reference_network("adversarial")).cuda()
        x, y = (part[rank:32:count].cuda() for part in reference_images())
        found = WPGD(**THREAT, steps=2, random_start=False)(model, x, y, reducer=default_reducer())
        assert found.distances.isfinite().all()
    finally:
        dist.destroy_process_group()


def test_ddp_on_every_gpu():
    """Lightning's ddp strategy, in the notebook form that starts its processes from this one."""
    trainer = cpu_trainer([adversary()], accelerator="gpu", devices=-1, strategy="ddp_spawn")
    trainer.fit(classifier(fitted()), datamodule=Arrays(n=60, num_workers=0))


def test_resnet18_in_bf16_and_channels_last():
    """An input gradient of a large network in bf16 points where that of float32 does."""
    torch.manual_seed(0)
    model = resnet18(num_classes=10, shape=(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3).cuda().eval()
    x = torch.rand(64, 3, 32, 32, device="cuda")
    y = torch.arange(64, device="cuda") % 10

    def gradient(**autocast):
        at = x.clone().requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16, **autocast):
            loss = torch.nn.functional.cross_entropy(model(at).float(), y, reduction="sum")
        return torch.autograd.grad(loss, at)[0].flatten(1)

    alike = torch.nn.functional.cosine_similarity(gradient(enabled=False), gradient(enabled=True))
    assert alike.min() > 0.95


def test_no_step_waits_for_the_gpu():
    """A step of an attack issues its work without asking the GPU for a value."""
    model = copy.deepcopy(reference_network("adversarial")).cuda()
    x, y = (part.cuda() for part in images(64))

    def waits(steps):
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            WPGD(**THREAT, steps=steps, random_start=False)(model, x, y)
        return sum(event.count for event in recorded.key_averages() if event.key == "aten::_local_scalar_dense")

    waits(1)
    assert waits(9) == waits(3)

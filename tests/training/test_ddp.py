"""One process and two gloo processes compute the same thing on the same global data."""

import csv
import json
import os
import socket
from functools import partial

import pytest
import torch
from lightning import Callback
from shell import Arrays, adversary, classifier, digits, fitted, loader, run, trainer

from wdro_train.attacks import KLPGD, WFGSM, WPGD, WRM, BoundaryAttack, Lagrangian, MinimalDistance, Pool
from wdro_train.objectives import Adversarial, FirstOrderPenalty, Mart, Standard, StatisticallyRobust, WTrades
from wdro_train.training.callbacks import DistributionalAdversary
from wdro_train.utils.distributed import default_reducer

pytestmark = pytest.mark.slow

ATTACKS = {
    "w_fgsm": WFGSM,
    "w_pgd": partial(WPGD, steps=3, random_start=True),
    "best": partial(WPGD, steps=3, keep="best", random_start=False),
    "cheapest": partial(WPGD, steps=4, keep="cheapest", loss="redlr", random_start=False),
    "nearest": partial(WPGD, steps=4, keep="nearest", loss="redlr", random_start=False),
}
SCOPES = ("batch", "running")
NORMS = {"inf": 0.1, "2": 0.6, "3": 0.3}
SIZES = (20, 21)
# Kernels round differently for other batch sizes: in double precision that is no excuse.
PRECISIONS = {"64-true": 1e-6, "32-true": 1e-5}
JUDGED = {
    "W_2 inf": lambda: [adversary()],
    "W_2 2": lambda: [adversary(norm=2, delta=0.6)],
    "W_inf inf": lambda: [adversary(p="inf")],
    "batch Upsilon": lambda: [adversary(whole_set=False)],
    "worst case": lambda: [
        adversary(val_attack=None, first_order=None, distances=MinimalDistance(norm="inf", steps=5))
    ],
    "certified": lambda: [adversary(val_attack=None, first_order=None, certificate="ibp", delta=0.01)],
    "none": list,
}
OBJECTIVES = {
    "standard": Standard,
    "adversarial": Adversarial,
    "running": Adversarial,
    "first_order_penalty": partial(FirstOrderPenalty, p=2, norm="inf", delta=0.05),
    "w_trades": WTrades,
    "mart": Mart,
    "sr_wdro": StatisticallyRobust,
    "worst_case": Adversarial,
    "lagrangian": Adversarial,
    "kl_pgd": WTrades,
    "wrm": Adversarial,
}
THREAT = {"p": 2, "norm": "inf", "delta": 0.1, "steps": 4}
TRAINED_ON = {"worst_case": BoundaryAttack, "lagrangian": Lagrangian, "kl_pgd": KLPGD, "wrm": partial(WRM, gamma=20)}


def attack_cases():
    yield from ((kind, norm, scope, n) for kind in ATTACKS for norm in NORMS for scope in SCOPES for n in SIZES)
    yield from (("pool", norm, "batch", n) for norm in NORMS for n in SIZES)


def attacked(kind, norm, scope, n):
    """Two global batches of n images, dealt out as a distributed sampler does; everything back in global order."""
    reducer, p = default_reducer(), 2
    threat = {"p": p, "norm": norm, "delta": NORMS[norm]}
    if kind == "pool":
        attack = Pool(
            [WPGD(**threat, steps=3, keep="cheapest", loss=loss, random_start=False) for loss in ("ce", "redlr")]
        )
    else:
        attack = ATTACKS[kind](**threat, scope=scope)
    model, found = fitted(), []
    for batch in range(2):
        x, y = digits(n, start=300 + 50 * batch)
        rows = torch.arange(reducer.rank, -(-n // reducer.world_size) * reducer.world_size, reducer.world_size)
        generator = torch.Generator().manual_seed(batch)
        result = attack(
            model, x[rows % n], y[rows % n], weight=(rows < n).double(), reducer=reducer, generator=generator
        )
        shards = [reducer.gather(part) for part in (result.x_adv, result.distances)]
        found.append([shard.transpose(0, 1).flatten(0, 1)[:n] for shard in shards] + [result.upsilon])
    return found


def judged(name, precision, world):
    """Everything logged on 41 images in batches of 16."""
    module = classifier(fitted())
    strategy = "ddp" if world > 1 else "auto"
    door = trainer(JUDGED[name](), devices=world, strategy=strategy, precision=precision)
    logged = dict(door.validate(module, loader(41, 16 // world, start=300), verbose=False)[0])
    return logged | door.test(module, loader(37, 16 // world, start=400), verbose=False)[0]


class Curve(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, *_):
        self.losses.append(float(trainer.callback_metrics["train/loss_step"]))


def trained(name, world):
    """Loss of every step, everything logged in the last epoch, and the weights.

    In double precision: that the number of ranks does not matter is a claim about a step, and the rounding of float32,
    which depends on batch sizes and threads, grows from step to step.
    """
    curve = Curve()
    module = classifier(objective=OBJECTIVES[name](), optimizer=partial(torch.optim.SGD, lr=0.1))
    judge = adversary(scope="running" if name == "running" else "batch")
    if name in TRAINED_ON:
        judge = DistributionalAdversary(TRAINED_ON[name](**THREAT))
    callbacks = [curve, judge]
    strategy = "ddp" if world > 1 else "auto"
    door = trainer(callbacks, devices=world, strategy=strategy, max_epochs=4, precision="64-true")
    door.fit(module, datamodule=Arrays(batch_size=16, num_workers=0))
    logged = {key: float(value) for key, value in door.callback_metrics.items()}
    return curve.losses, logged, [p.detach() for p in module.parameters()]


def everything(world):
    with torch.random.fork_rng():
        return (
            {(name, precision): judged(name, precision, world) for name in JUDGED for precision in PRECISIONS},
            {name: trained(name, world) for name in OBJECTIVES},
            {case: attacked(*case) for case in attack_cases()},
        )


def _rank(rank, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    found = everything(world=2)
    torch.save(found, out / f"{rank}.pt")
    torch.distributed.barrier()  # a rank that leaves while another one still listens aborts it
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(one process, rank 0 of two, rank 1 of two)."""
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, out), nprocs=2)
    return everything(world=1), *(torch.load(out / f"{rank}.pt") for rank in range(2))


@pytest.mark.parametrize("case", attack_cases(), ids=lambda case: "-".join(map(str, case)))
def test_attack(both, case):
    one, *ranks = (found[2][case] for found in both)
    for two in ranks:
        for mine, theirs in zip(one, two, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)
    moved = [distances.max() for _, distances, _ in one]
    assert min(moved) > 0


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", JUDGED)
def test_validation_and_test_metrics(both, name, precision):
    one, *ranks = (found[0][name, precision] for found in both)
    assert one.keys() >= {"val/clean_acc", "test/clean_acc"}
    tolerance = PRECISIONS[precision]
    for two in ranks:
        assert two == pytest.approx(one, rel=tolerance, abs=tolerance, nan_ok=True)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training(both, name):
    one, *ranks = (found[1][name] for found in both)
    assert len(one[0]) == 4 * (105 // 16) >= 20
    assert one[0][-1] < one[0][0]
    for two in ranks:
        assert two[0] == pytest.approx(one[0], rel=1e-5)
        assert two[1] == pytest.approx(one[1], rel=1e-5, abs=1e-5, nan_ok=True)
        torch.testing.assert_close(two[2], one[2], rtol=1e-5, atol=1e-5)


def test_command_line(tmp_path):
    """Ends, leaves one folder, and agrees with one process: over a few steps in double precision, see `trained`."""
    common = ["trainer.max_epochs=2", "logger=csv", "model.width=8", "callbacks.images.every_n_epochs=1"]
    common += ["trainer.limit_train_batches=3", "trainer.precision=64-true"]
    for name in ("cpu", "ddp_sim"):
        done = run("train.py", f"trainer={name}", *common, f"hydra.run.dir={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu", "ddp_sim"]
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("cpu", "ddp_sim"))
    for stage in ("val", "test"):
        assert two[stage] == pytest.approx(one[stage], rel=1e-5, abs=1e-5)
    rows = [len(list(csv.reader((tmp_path / name / "csv/metrics.csv").open()))) for name in ("cpu", "ddp_sim")]
    assert rows[0] == rows[1]
    for name in ("cpu", "ddp_sim"):
        assert sorted(p.name for p in (tmp_path / name / "images").iterdir()) == ["epoch_000.png", "epoch_001.png"]

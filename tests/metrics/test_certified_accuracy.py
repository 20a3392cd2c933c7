"""What a certificate guarantees over a whole set, against linear programming and against the attack's bound."""

import math
import os
import socket

import numpy as np
import pytest
import torch
from oracles import reference_images, reference_network
from scipy.optimize import linprog

from wdro_train.attacks import MinimalDistance
from wdro_train.certificates import LinearRelaxation
from wdro_train.metrics import CertifiedAccuracy, WorstCaseAccuracy
from wdro_train.theory.ball import WassersteinBall

LOGITS = torch.eye(3)[torch.tensor([0, 0, 1, 2, 0, 1])]
LABELS = torch.tensor([0, 0, 1, 2, 1, 1])  # the fifth is misclassified
RADII = torch.tensor([0.0, 0.1, 0.25, math.inf, 0.0, 0.05], dtype=torch.float64)  # the first could not be certified


def filled(ball, radii, weight=None, parts=1, logits=LOGITS, labels=LABELS):
    metric = CertifiedAccuracy(ball)
    weight = torch.ones(len(labels)) if weight is None else weight
    for rows in torch.arange(len(labels)).tensor_split(parts):
        metric.update(logits[rows], labels[rows], radii[rows], weight[rows])
    return {key: float(value) for key, value in metric.compute().items()}


@pytest.mark.parametrize("p", [1, 1.5, 2])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.1, 0.3])
def test_the_guarantee_is_the_linear_program_over_radii(p, delta):
    cost = np.minimum(RADII.numpy(), 1e6) ** p / len(RADII)
    moved = linprog(-np.ones(6) / 6, A_ub=cost[None], b_ub=[delta**p], bounds=[(0, 1)] * 6)
    found = filled(WassersteinBall(p, math.inf, delta), RADII)
    assert found["certified_acc"] == pytest.approx(1 + moved.fun, abs=1e-6)
    assert found["certified_ratio"] == pytest.approx((1 + moved.fun) / (5 / 6), abs=1e-6)


def test_pointwise_it_counts_the_images_certified_beyond_the_radius():
    found = filled(WassersteinBall(math.inf, math.inf, 0.1), RADII)
    assert found == pytest.approx({"certified_acc": 2 / 6, "certified_ratio": 2 / 5})


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_batches_and_padding_change_nothing(parts):
    ball = WassersteinBall(2, math.inf, 0.05)
    padded = filled(
        ball, torch.cat([RADII, torch.tensor([9.0, 0.0])]), torch.tensor([1.0] * 6 + [0.0] * 2), parts,
        torch.cat([LOGITS, LOGITS[:2]]), torch.cat([LABELS, LABELS[:2]]),
    )  # fmt: skip
    assert padded == filled(ball, RADII)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_certificate_and_attack_enclose_the_truth(p):
    net, (x, y) = reference_network("adversarial"), (part[:60] for part in reference_images())
    ball = WassersteinBall(p, math.inf, 0.01)
    radii = LinearRelaxation(norm=math.inf, method="ibp")(net, x, y).radii
    attacked = WorstCaseAccuracy(ball)
    attacked.update(MinimalDistance(norm=math.inf, steps=10)(net, x, y).distances, torch.ones(60))
    with torch.no_grad():
        certified = filled(ball, radii, logits=net(x), labels=y)
    assert 0 < certified["certified_acc"] <= float(attacked.compute()["worst_acc"])


def _rank(rank, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    ball = WassersteinBall(2, math.inf, 0.05)
    certified, worst = CertifiedAccuracy(ball), WorstCaseAccuracy(ball)
    if rank == 0:
        certified.update(LOGITS, LABELS, RADII, torch.ones(6))
        worst.update(RADII, torch.ones(6))
    torch.save({**certified.compute(), **worst.compute()}, out / f"{rank}.pt")
    torch.distributed.barrier()  # a rank that leaves while another one still listens aborts it
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_rank_without_images_takes_part(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (port, tmp_path), nprocs=2)
    alone = filled(WassersteinBall(2, math.inf, 0.05), RADII)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert float(found["certified_acc"]) == alone["certified_acc"] == float(found["worst_acc"])

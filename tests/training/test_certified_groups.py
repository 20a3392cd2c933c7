"""Images are certified in groups, whatever their batches, and each counts once."""

import math

import pytest
import torch
from lightning.pytorch.trainer.states import RunningStage
from torch import nn

from wdro_train.certificates import LinearRelaxation, Radii
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.training.adversary import AdversarialJudge
from wdro_train.training.adversary.certified_groups import CertifiedGroups
from wdro_train.training.batches import StepBatch
from wdro_train.training.epoch_metrics import JudgedMetrics
from wdro_train.utils.contract import check_batch


class Counting:
    """A certificate that notes how many images it is given at a time."""

    norm = math.inf

    def __init__(self):
        self.inner, self.calls = LinearRelaxation(norm=math.inf, method="ibp"), []

    def __call__(self, model, x, y, *, generator=None) -> Radii:
        self.calls.append(len(x))
        return self.inner(model, x, y, generator=generator)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


def batches(network, sizes, side=4, index=0):
    """Batches labelled as the network sees them, but for every third image."""
    generator = torch.Generator().manual_seed(index)
    for k, size in enumerate(sizes):
        x = torch.rand(size, 1, side, side, generator=generator)
        y = network(x).argmax(1)
        y[::3] = (y[::3] + 1) % 3
        weight = torch.ones(size, dtype=torch.float64)
        weight[-1] = float(k + 1 < len(sizes))  # the last image fills up
        yield StepBatch(check_batch(x, y), weight, RunningStage.VALIDATING, 0, index + k)


def test_groups_have_the_radii_of_their_images(network):
    held = list(batches(network, [5, 5, 5, 2]))
    certificate = Counting()
    groups = CertifiedGroups(certificate, seed=0, size=10)
    parts = [groups.add(network, batch, network(batch.x)) for batch in held]
    assert [None if part is None else len(part.radii) for part in parts] == [None, 10, None, None]
    last = groups.rest(network)
    assert certificate.calls == [10, 7]
    assert groups.rest(network) is None
    found = [parts[1], last]
    x, y, weight = (torch.cat([getattr(batch, part) for batch in held]) for part in ("x", "y", "weight"))
    expected = certificate.inner(network, x, y).radii
    assert (expected > 0).any()
    torch.testing.assert_close(torch.cat([part.radii for part in found]), expected, rtol=1e-2, atol=0)
    assert torch.equal(torch.cat([part.labels for part in found]), y)
    assert torch.equal(torch.cat([part.weight for part in found]), weight)
    torch.testing.assert_close(torch.cat([part.clean_logits for part in found]), network(x))


def test_images_of_another_size_begin_a_group(network):
    groups = CertifiedGroups(Counting(), seed=0, size=10)
    (small,), (large,) = batches(network, [6]), batches(network, [6], side=8, index=1)
    assert groups.add(network, small, network(small.x)) is None
    assert len(groups.add(network, large, network(large.x)).radii) == 6
    assert len(groups.rest(network).radii) == 6
    assert groups.certificate.calls == [6, 6]


def test_every_image_counts_once_in_the_metric_and_none_of_an_interrupted_set(network):
    ball, certificate = WassersteinBall(2, math.inf, 0.01), Counting()
    kept = AdversarialJudge(ball, None, None, None, certificate)
    kept.judge(network, next(batches(network, [4], index=7)))  # the sanity check, say, ends here
    judge, metrics = kept.fresh(), JudgedMetrics("val", kept)
    held = list(batches(network, [5, 5, 2]))
    for batch in held:
        metrics.update(judge.judge(network, batch))
    metrics.certify(judge.rest(network))
    shown, _ = metrics.take()
    assert certificate.calls == [12]
    x, y, weight = (torch.cat([getattr(batch, part) for batch in held]) for part in ("x", "y", "weight"))
    radii = certificate.inner(network, x, y).radii[weight > 0]
    assert float(shown["val/certified_acc"]) == pytest.approx(RobustnessCurve(radii).accuracy(0.01, 2), abs=1e-6)
    assert float(shown["val/clean_acc"]) == pytest.approx(float((radii > 0).double().mean()))
    assert judge.rest(network) is None

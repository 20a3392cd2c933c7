"""Narrowing the enclosure: which images are asked about, what comes of it, and what a killed run keeps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from wdro_train.attacks import MinimalDistance
from wdro_train.certificates import ExactRobustness, LinearRelaxation
from wdro_train.certificates.base import THE_NETWORK, Radii
from wdro_train.certificates.exact_questions import AtRadius
from wdro_train.evaluation.certified_curve import CertifiedCurve, certified_curve
from wdro_train.evaluation.distances import FoundDistances, find_distances
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.exact_intervals import ExactIntervals, chosen_question, exact_intervals
from wdro_train.evaluation.measurements import Narrowed
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.report.intervals import differences
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve

INF = math.inf


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A random network on 12 images in three batches, with certified radii and distances of a weak attack."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        for part in net[-1].parameters():
            part *= 30
    x = torch.rand(12, 1, 3, 3)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)  # every class is some image's
    y = net(x).argmax(1)
    y[3] = (y[3] + 1) % 3  # misclassified
    batches = list(zip(x.split(5), y.split(5), strict=True))
    engine = Engine(net, batches, PieceStore(tmp_path_factory.mktemp("pieces"), {}))
    radii = certified_curve(engine, LinearRelaxation(norm=INF, method="ibp"), "exact").curve.distances
    distances = find_distances(engine, MinimalDistance(norm=INF, steps=1)).distances
    return engine, radii, distances


@pytest.fixture(scope="module")
def truth(judged):
    """Exact distances, at most 0.3 % too short."""
    exact = ExactRobustness(norm=INF, tolerance=3e-3)
    return np.concatenate([exact(judged[0].model, x, y).radii.numpy() for x, y in judged[0].batches])


def ball(p, delta):
    return WassersteinBall(p=p, norm=INF, delta=delta)


@pytest.mark.slow
@pytest.mark.parametrize("p", [INF, 2, 1])
def test_the_enclosure_shrinks_and_keeps_the_truth(judged, truth, p):
    engine, radii, distances = judged
    delta = float(np.median(distances[(distances > 0) & (distances < INF)])) * (1 if p == INF else 0.5)
    found = exact_intervals(engine, ExactRobustness(norm=INF), ball(p, delta), radii, distances)
    high = np.minimum(found.distances, distances)
    assert (found.radii >= radii).all()
    assert (found.radii <= high).all()
    low_end, high_end = (RobustnessCurve(values).accuracy(delta, p) for values in (found.radii, high))
    before = [RobustnessCurve(values).accuracy(delta, p) for values in (radii, distances)]
    assert before[0] <= low_end <= high_end <= before[1]
    assert before[1] - before[0] > 0.1
    assert high_end - low_end <= (0 if p == INF else 0.02)
    assert found.decided == found.asked
    assert (found.radii <= truth * 1.004).all()
    assert (high >= truth * (1 - 1e-6)).all()


def test_only_images_that_matter_are_asked_about(judged):
    engine, radii, distances = judged
    delta = float(np.median(distances[(distances > 0) & (distances < INF)]))
    asked = []

    class Counting(ExactRobustness):
        def narrow(self, model, x, y, low, high, question):
            asked.append((float(low), float(high)))
            return super().narrow(model, x, y, low, high, question)

    found = exact_intervals(engine, Counting(norm=INF), ball(INF, delta), radii, distances)
    matter = (radii <= delta) & (delta < distances)
    assert len(asked) == found.asked == matter.sum() < len(radii)
    assert sorted(asked) == sorted(zip(radii[matter], distances[matter], strict=True))
    assert (found.radii[~matter] == radii[~matter]).all()
    assert distances[3] == found.radii[3] == 0


def test_a_second_run_takes_the_pieces(judged, monkeypatch):
    engine, radii, distances = judged
    delta = float(np.median(distances[(distances > 0) & (distances < INF)])) * 0.9
    exact = ExactRobustness(norm=INF)
    first = exact_intervals(engine, exact, ball(INF, delta), radii, distances)
    monkeypatch.setattr(ExactRobustness, "narrow", None)
    second = exact_intervals(engine, exact, ball(INF, delta), radii, distances)
    np.testing.assert_array_equal(first.radii, second.radii)
    np.testing.assert_array_equal(first.distances, second.distances)
    with pytest.raises(TypeError):  # other radii to begin with: another stage
        exact_intervals(engine, exact, ball(INF, delta), radii * 0.99, distances)


def test_the_evidence_counts_proofs_and_counterexamples(judged):
    engine, _, distances = judged
    delta = float(np.median(distances[(distances > 0) & (distances < INF)]))
    found = find_distances(engine, MinimalDistance(norm=INF, steps=1))
    evidence = NetworkEvidence(ball(INF, delta), "all", "their digest", found)
    assert Narrowed(ExactRobustness(norm=INF))(engine, evidence) is evidence
    sure = certified_curve(engine, LinearRelaxation(norm=INF, method="ibp"), "exact")
    after = Narrowed(ExactRobustness(norm=INF))(engine, replace(evidence, certificate=sure))
    assert after.curve.accuracy(delta, INF) == after.certificate.curve.accuracy(delta, INF)
    assert after.curve.accuracy(delta, INF) < evidence.curve.accuracy(delta, INF)
    x = torch.cat([images for images, _ in engine.batches])
    for mover in after.moved:
        assert mover.becomes != mover.label
        if after.exact.distances[mover.index] < found.distances[mover.index]:
            assert after.exact.rivals[mover.index] == mover.becomes
    assert correct(engine.model(x), torch.as_tensor(found.labels)).sum() == 11


def test_the_interval_of_the_distribution_has_no_part_in_what_exact_chose_by_the_whole_set():
    threat, d = ball(2, 0.1), np.linspace(0.05, 0.4, 60)
    found = FoundDistances(d, np.zeros(60, int), np.ones(60, bool), np.ones(60, int), 0, 0)
    weaker = FoundDistances(np.sqrt(d) / 2, np.zeros(60, int), np.ones(60, bool), np.ones(60, int), 0, 0)
    sure = CertifiedCurve("exact", 1.0, THE_NETWORK, RobustnessCurve(d / 3))
    plain = NetworkEvidence(threat, "all", "digest", found, certificate=sure)
    flips = np.where(np.arange(60) % 3 == 0, 0.9 * d, INF)
    exact = ExactIntervals(d / 2, d / 3, flips, np.full(60, -1), 60, 0, 60, 20, 1.0)
    narrowed = replace(plain, certificate=replace(sure, curve=RobustnessCurve(exact.radii)), exact=exact)
    other = NetworkEvidence(threat, "all", "digest", weaker)
    (before,), (after,) = (differences([one, other], ["a", "b"], threat, 0.05)["rows"] for one in (plain, narrowed))
    assert (after["lower_end"], after["upper_end"]) == (before["lower_end"], before["upper_end"])
    assert before["lower_end"] < before["enclosed_low"] < after["enclosed_low"]
    assert after["enclosed_high"] < before["enclosed_high"] < before["upper_end"]


def test_certifying_a_set_certifies_each_image_once(tmp_path):
    seen = []

    class Seeing(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.flatten(1)

    def certificate(model, x, y, generator=None):
        model(x)
        return Radii(torch.ones(len(x)).double(), y == y, INF, 1.0, THE_NETWORK)

    batches = [(torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64)) for _ in range(2)]
    engine = Engine(Seeing(), batches, PieceStore(tmp_path, {}))
    assert certified_curve(engine, certificate, "mine").about == THE_NETWORK
    assert seen == [3, 3]
    assert certified_curve(engine, certificate, "mine").about == THE_NETWORK
    assert seen == [3, 3, 1]  # all is in the store, which does not know of whom it speaks


def test_the_question_follows_from_the_threat():
    radii, distances = RobustnessCurve([0.1, 0.2, 0.3]), RobustnessCurve([0.2, 0.4, INF])
    assert chosen_question(radii, distances, ball(INF, 0.15), 0.01) == AtRadius(0.15)
    bisection = chosen_question(radii, distances, ball(1, 0.15), 0.01)
    assert bisection.largest == 0.4  # the image that the attack's knapsack splits; the other one splits the third
    assert chosen_question(radii, distances, ball(1, 5.0), 0.01).largest == 1.0

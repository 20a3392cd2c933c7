"""Which distances may depend on which images, as bands and paired differences need them (theory, section 12)."""

import copy
import math

import numpy as np
import pytest
import torch
from oracles import reference_images, reference_network

from wdro_train.attacks import MinimalDistance
from wdro_train.evaluation.autoattack import ReferenceResult
from wdro_train.evaluation.distances import find_distances
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.evidence import NetworkEvidence
from wdro_train.evaluation.first_order import FirstOrderRow
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.whole_set_pgd import pgd_whole_set
from wdro_train.theory.ball import WassersteinBall

INF = math.inf


@pytest.fixture(scope="module")
def sets():
    """Two sets that share their first twelve images, and a network in double precision, where rounding is no matter."""
    x, y = reference_images()
    one, other = torch.arange(24), torch.cat([torch.arange(12), torch.arange(200, 212)])
    return copy.deepcopy(reference_network("adversarial")).double(), [
        (x[rows].double(), y[rows]) for rows in (one, other)
    ]


def engine(model, batch, folder):
    return Engine(model, [batch], PieceStore(folder, {}))


@pytest.mark.parametrize("norm", [1, 2, INF])
def test_the_distance_of_an_image_is_a_function_of_this_image(sets, tmp_path, norm):
    model, both = sets
    attack = MinimalDistance(norm=norm, steps=10)
    one, other = (
        find_distances(engine(model, batch, tmp_path / str(k)), attack).distances for k, batch in enumerate(both)
    )
    np.testing.assert_allclose(one[:12], other[:12], rtol=1e-4)
    assert not np.allclose(one[12:], other[12:], rtol=1e-2)


def test_flips_of_w_pgd_depend_on_other_images_and_stay_out_of_what_is_said_of_the_distribution(sets, tmp_path):
    model, both = sets
    ball = WassersteinBall(2, INF, 0.1)
    engines = [engine(model.float(), (x.float(), y), tmp_path / str(k)) for k, (x, y) in enumerate(both)]
    flips = [
        pgd_whole_set(one, norm=INF, loss="redlr", p=2, delta=0.1, steps=8, box=True).flips[:12] for one in engines
    ]
    model.double()
    moved = np.isfinite(flips[0]) & (flips[0] > 0)
    assert moved.any()
    assert not np.allclose(flips[0], flips[1], rtol=1e-3)

    found = find_distances(engines[0], MinimalDistance(norm=INF, steps=5))
    cheap = np.where(found.distances > 0, 0.001, 0)
    row = FirstOrderRow("redlr", ball, 8, None, 0.0, 0.0, 0.0, cheap)
    evidence = NetworkEvidence(ball, "all", engines[0].images_digest, found, first_order=(row,))
    np.testing.assert_array_equal(evidence.curve.distances, cheap)
    np.testing.assert_array_equal(evidence.curve_image_by_image.distances, found.distances)


def test_reference_attacks_look_at_each_image_by_itself_and_are_in_both(sets, tmp_path):
    model, (batch, _) = sets
    found = find_distances(engine(model, batch, tmp_path), MinimalDistance(norm=INF, steps=5))
    ball = WassersteinBall(INF, INF, 0.1)
    near = ReferenceResult("AutoAttack", ball, 0.0, np.where(found.distances[:5] > 0, 0.001, 0), 1.0)
    evidence = NetworkEvidence(ball, "first", "digest", found, references=(near,))
    for curve in (evidence.curve, evidence.curve_image_by_image):
        np.testing.assert_array_equal(curve.distances, np.r_[near.flips, found.distances[5:]])


def test_the_digest_knows_images_labels_and_order(sets, tmp_path):
    model, ((x, y), _) = sets
    same, swapped, other_label = (
        engine(model, batch, tmp_path).images_digest
        for batch in ((x.clone(), y.clone()), (x.flip(0), y.flip(0)), (x, torch.cat([1 - y[:1], y[1:]])))
    )
    assert same == engine(model, (x, y), tmp_path).images_digest
    assert len({same, swapped, other_label}) == 3

"""Certified radii against exact ones, on networks that the command draws."""

import math
from types import SimpleNamespace

import pytest
import torch

from wdro_train.certificates import LinearRelaxation
from wdro_train.tools import certificate_tightness
from wdro_train.tools.certificate_tightness import random_networks, tightness


@pytest.mark.slow
def test_no_certificate_exceeds_the_exact_radius():
    found, left_out = tightness(2, 1, seed=1)
    rows = {row.method: row for row in found}
    assert {"ibp", "crown"} <= rows.keys()
    for row in rows.values():
        assert row.images == 2 - sum(left_out) > 0
        assert row.above == 0
        assert 0 < row.lowest <= row.median <= row.largest <= 1
    assert rows["ibp"].median < rows["crown"].median


@pytest.mark.slow
def test_a_radius_that_is_too_large_is_counted(monkeypatch):
    class Unsound(LinearRelaxation):
        def __call__(self, *given, **options):
            found = super().__call__(*given, **options)
            found.radii.mul_(2.5 if self.method == "crown" and self.tolerance < 5e-3 else 1.0)
            return found

    monkeypatch.setattr(certificate_tightness, "LinearRelaxation", Unsound)
    monkeypatch.setattr(certificate_tightness, "BOUNDS", ("ibp", "crown"))
    rows = {row.method: row for row in tightness(1, 2, seed=1)[0]}
    assert rows["crown"].above > 0
    assert rows["ibp"].above == 0


@pytest.mark.slow
@pytest.mark.covers
def test_images_without_an_exact_radius_are_left_out_and_counted(monkeypatch):
    class Unfinished:
        def __init__(self, **options):
            pass

        def narrow(self, network, x, y, low, high, question):
            low = torch.tensor([0.1 - 1e-5, 0.1, 0.1, 0.999, 0.0])
            high = torch.tensor([0.1, 0.2, math.inf, math.inf, 0.0])
            return SimpleNamespace(low=low.double(), high=high.double())

    monkeypatch.setattr(certificate_tightness, "ExactRobustness", Unfinished)
    monkeypatch.setattr(certificate_tightness, "BOUNDS", ("ibp", "crown"))
    rows, left_out = tightness(1, 5, seed=1)
    assert {row.images for row in rows} == {1}
    assert left_out == (1, 1, 2)  # a tie; no point flips it; an interval that is still wide, above or altogether open
    assert "2 images that stayed undecided" in str(left_out)


def test_the_draws_are_those_of_the_seed():
    (first, x, y), (again, same, _), (other, *_) = (next(random_networks(1, 3, seed)) for seed in (0, 0, 1))
    assert torch.equal(x, same)
    torch.testing.assert_close(first.state_dict(), again.state_dict(), rtol=0, atol=0)
    assert torch.equal(first(x).argmax(1), y)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(first[1].weight, other[1].weight)

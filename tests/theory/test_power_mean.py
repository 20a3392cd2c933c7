import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import on_ranks, power_mean

from wdro_train.theory import power_mean as moments
from wdro_train.theory.sensitivity import RunningScope, resolve_scope, upsilon
from wdro_train.utils.errors import UserError

EXPONENTS = [1.0, 1.5, 2.0, 3.0, 11.0, 101.0, math.inf]
SCALES = [1e-20, 1e-3, 1.0, 1e20]
values_and_weights = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.floats(0, 1e3, width=32)),
        hnp.arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0, 1.0, 2.5])),
    )
)


def draw(count=60, seed=0):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)).double() ** 3


@pytest.mark.parametrize("e", EXPONENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_direct_formula(e, scale):
    v = (draw() * scale).float()
    assert upsilon(v, e).item() == pytest.approx(power_mean(v.double().numpy(), e), rel=1e-12)


@pytest.mark.parametrize("e", EXPONENTS)
def test_mixed_scales(e):
    v = torch.cat([draw() * scale for scale in SCALES])
    assert upsilon(v, e).item() == pytest.approx(power_mean(v, e), rel=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(values_and_weights, st.sampled_from(EXPONENTS), st.integers(0, 12))
def test_any_split_and_order_with_weights(pair, e, cut):
    v, w = map(torch.tensor, pair)
    whole = moments.moment(v, w, e)
    if w.sum() == 0:
        assert moments.power_mean(whole, e) == 0
        return
    expected = power_mean(v, e, w)
    parts = [moments.moment(v[s], w[s], e) for s in (slice(cut), slice(cut, None))]
    joined = moments.merge(torch.stack(parts), e)
    flipped = moments.moment(v.flip(0), w.flip(0), e)
    for total in (whole, joined, flipped):
        assert moments.power_mean(total, e).item() == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("e", EXPONENTS)
def test_merge_is_associative(e):
    a, b, c = (moments.moment(draw(9, seed) * scale, None, e) for seed, scale in enumerate((1e-20, 1.0, 1e5)))
    for one, two, three in permutations((a, b, c)):
        left = moments.merge(torch.stack([moments.merge(torch.stack([one, two]), e), three]), e)
        torch.testing.assert_close(left, moments.merge(torch.stack([a, b, c]), e), rtol=1e-12, atol=0)


@pytest.mark.parametrize("e", EXPONENTS)
def test_padding_counts_for_nothing(e):
    v = draw()
    padded = torch.cat([v, torch.tensor([1e30, math.nan, math.inf])])
    weight = torch.cat([torch.ones(60), torch.zeros(3)])
    assert upsilon(padded, e, weight) == upsilon(v, e)
    assert upsilon(torch.zeros(5), e) == 0


@pytest.mark.parametrize("e", [1.0, 2.0, 3.0])
def test_ranks_agree_with_one_process(e):
    v = draw(63)
    found = on_ranks(3, lambda reducer, _: upsilon(v[reducer.rank :: 3], e, reducer=reducer), torch.nn.Identity())
    assert found[0] == found[1] == found[2]
    assert found[0].item() == pytest.approx(power_mean(v, e), rel=1e-12)


@pytest.mark.parametrize("e", [1.0, 1.5, 3.0])
def test_running_scope_is_a_discounted_mean(e):
    scope, batches = RunningScope(decay=0.9), [draw(10, seed) * 10.0**seed for seed in range(4)]
    for v in batches:
        total = scope("upsilon/0", moments.moment(v, None, e), e)
    ages = torch.tensor([0.9 ** (3 - k) for k in range(4)]).repeat_interleave(10)
    expected = power_mean(torch.cat(batches), e, ages)
    assert moments.power_mean(total, e).item() == pytest.approx(expected, rel=1e-6)
    other = RunningScope(decay=0.9)
    other.load_state_dict(scope.state_dict())
    assert torch.equal(*(s("upsilon/0", moments.moment(batches[0], None, e), e) for s in (scope, other)))
    fresh = moments.moment(batches[0], None, e)
    assert torch.equal(scope("upsilon/1", fresh, e), fresh)  # each step has an estimate of its own


def test_scope_names():
    assert resolve_scope("batch").name == "batch"
    assert resolve_scope("running") is not resolve_scope("running")
    with pytest.raises(UserError, match=r"attack\.scope='epoch' is unknown; choose batch or running"):
        resolve_scope("epoch")

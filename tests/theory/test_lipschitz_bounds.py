"""Lipschitz constants against explicit matrices, and radii against their definition."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from wdro_train.theory.lipschitz import convolution_norm, magnitude_norm, matrix_norm, rival_radii
from wdro_train.theory.rounding import accumulated


def explicit(weight, size, **options):
    """The matrix of a convolution on images of one size, by its values on unit images."""
    channels = weight.shape[1] * options.get("groups", 1)
    eye = torch.eye(channels * size[0] * size[1], dtype=torch.float64).view(-1, channels, *size)
    return functional.conv2d(eye, weight.double(), **options).flatten(1).T


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5), (1, 4)])
def test_matrix_norm_is_the_largest_singular_value(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = np.linalg.norm(matrix.double().numpy(), 2)
    assert exact <= matrix_norm(matrix) <= exact * (1 + 1e-8)
    assert np.linalg.norm(matrix.double().abs().numpy(), 2) <= magnitude_norm(matrix) * (1 + 1e-12)
    assert matrix_norm(torch.zeros(shape)) == magnitude_norm(torch.zeros(shape)) == 0


@settings(deadline=None, max_examples=60)
@given(
    *(st.integers(1, 3), st.integers(1, 2), st.tuples(st.integers(1, 4), st.integers(1, 3))),
    *(st.tuples(st.integers(1, 3), st.integers(1, 3)), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    *(st.tuples(st.integers(1, 2), st.integers(1, 2)), st.integers(0, 10**6)),
)
def test_the_bound_of_a_convolution_is_never_below_its_norm(channels, groups, kernel, stride, padding, dilation, seed):
    weight = torch.randn(2 * groups, channels, *kernel, generator=torch.Generator().manual_seed(seed))
    size = (8, 7)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    exact = np.linalg.norm(explicit(weight, size, **options).numpy(), 2)
    bound = convolution_norm(weight, size, **options)
    assert exact <= bound * (1 + 1e-12)
    assert bound <= math.sqrt(weight.double().square().sum() * math.prod(kernel)) * (1 + 1e-6)


@pytest.mark.parametrize(("stride", "ratio"), [((1, 1), 1.02), ((2, 2), 1.02)])
def test_the_bound_of_a_convolution_is_close_on_large_images(stride, ratio):
    weight = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    exact = np.linalg.norm(explicit(weight, (24, 24), stride=stride, padding=1).numpy(), 2)
    assert convolution_norm(weight, (24, 24), stride=stride, padding=(1, 1)) <= ratio * exact


def test_a_convolution_that_moves_patches_has_norm_one():
    patches = torch.eye(4).view(4, 1, 2, 2)
    assert convolution_norm(patches, (8, 8), stride=(2, 2)) == pytest.approx(1, abs=1e-8)
    assert convolution_norm(patches, (8, 8)) == pytest.approx(2, rel=1e-2)


def test_sums_in_any_order_stay_within_the_rounding_bound():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 300, 50, generator=generator)
    true, size = (a.double() * b.double()).sum(0), (a.double() * b.double()).abs().sum(0)
    for order in (slice(None), torch.randperm(300, generator=generator)):
        total = torch.zeros(50)
        for product in (a * b)[order]:
            total = total + product
        assert ((total.double() - true).abs() <= accumulated(300) * size).all()
    assert accumulated(1) >= 2.0**-24
    assert ((a * b).double() - a.double() * b.double()).abs().max() > 0  # there is something to bound


@pytest.mark.parametrize("seed", range(3))
def test_radii_are_the_distances_to_the_nearest_rival(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, features = torch.randn(5, 6, generator=generator).double(), torch.randn(40, 6, generator=generator).double()
    logits, labels = features @ rows.T, torch.randint(5, (40,), generator=generator)
    found = rival_radii(logits, labels, rows)
    for z, y, r in zip(logits, labels, found, strict=True):
        assert r.item() == pytest.approx(
            min((z[y] - z[j]).item() / np.linalg.norm(rows[y] - rows[j]) for j in range(5) if j != y), rel=1e-12
        )
    assert ((found > 0) == (logits.argmax(1) == labels)).all()
    assert (found < 0).any()


def test_equal_rows_never_draw_level():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    logits = torch.tensor([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
    labels = torch.zeros(2, dtype=torch.int64)
    first, second = rival_radii(logits, labels, rows).tolist()
    assert first == pytest.approx(2 / math.sqrt(2))
    assert second == -math.inf
    assert rival_radii(logits[:1, :2], labels[:1], rows[:2]).item() == math.inf


def test_radii_have_finite_gradients():
    rows = torch.randn(4, 3, requires_grad=True)
    features = torch.randn(20, 3, requires_grad=True)
    rival_radii(features @ rows.T, torch.arange(20) % 4, rows).sum().backward()
    assert rows.grad.isfinite().all()
    assert features.grad.isfinite().all()
    assert all(part.grad.abs().sum() > 0 for part in (rows, features))


def test_every_rival_counts():
    """Permuting the classes permutes nothing in the radii."""
    generator = torch.Generator().manual_seed(0)
    rows, logits = torch.randn(4, 3, generator=generator), torch.randn(6, 4, generator=generator)
    labels = torch.randint(4, (6,), generator=generator)
    base = rival_radii(logits, labels, rows)
    for order in itertools.permutations(range(4)):
        index = torch.tensor(order)
        where = index.argsort()
        torch.testing.assert_close(rival_radii(logits[:, index], where[labels], rows[index]), base)

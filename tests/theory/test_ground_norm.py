import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import conjugate, norm

from wdro_train.theory.ground_norm import GroundNorm, image_norms
from wdro_train.utils import devices
from wdro_train.utils.errors import UserError

INF = math.inf
NORMS = [1.0, 1.5, 2.0, 3.0, INF]
finite = st.floats(-1e3, 1e3, width=32)
batches = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=finite)


@pytest.mark.parametrize(
    ("order", "message"),
    [(0.5, r"norm=0\.5 is not a norm"), ("nan", "norm=nan is not a norm"), ("l2", "norm='l2' is not a number")],
)
def test_orders_below_one_are_no_norms(order, message):
    with pytest.raises(UserError, match=rf"attack\.{message}"):
        GroundNorm(order)


@pytest.mark.parametrize(("s", "dual"), [(1, INF), (1.5, 3), (2, 2), (3, 1.5), (INF, 1)])
def test_dual_exponents(s, dual):
    assert GroundNorm(s).dual == pytest.approx(dual)
    assert conjugate(dual) == pytest.approx(s)


@pytest.mark.parametrize("s", NORMS)
def test_diameter_is_the_distance_of_opposite_corners(s):
    corners = torch.zeros(2, 1, 3, 4), torch.ones(2, 1, 3, 4)
    ground = GroundNorm(s)
    assert ground.distances(corners[1] - corners[0]).tolist() == pytest.approx([ground.diameter(corners[0])] * 2)


@pytest.mark.parametrize("s", [*NORMS, 1.005, 1.05, 7.0, 200.0])
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_norms_at_every_scale(s, scale):
    u = (torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * scale).float()
    u[0] = 0
    torch.testing.assert_close(image_norms(u, s), norm(u.double() / scale, s) * scale, rtol=1e-5, atol=0)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batches, st.sampled_from(NORMS), st.floats(-1e3, 1e3))
def test_norms_are_norms(a, s, c):
    u = torch.tensor(a)
    lengths = image_norms(u, s)
    assert ((lengths == 0) == (u.flatten(1) == 0).all(1)).all()
    torch.testing.assert_close(image_norms(c * u.double(), s), abs(c) * lengths, rtol=1e-5, atol=1e-30)
    assert (image_norms(u + u.flip(0), s) <= (lengths + lengths.flip(0)) * (1 + 1e-5)).all()


@pytest.mark.parametrize("s", NORMS)
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_direction_attains_the_dual_norm(s, scale):
    g = torch.randn(9, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    g[1] = g[1].sign()  # every coordinate ties
    g[2, 0, 0, :3] = torch.tensor([5.0, -5.0, 5.0])  # some tie
    g[3] = 0
    g = (g * scale).float()
    ground = GroundNorm(s)
    h = ground.direction(g)
    assert h.dtype == g.dtype
    assert h.shape == g.shape
    alive = torch.arange(9) != 3
    torch.testing.assert_close(norm(h, s)[alive], torch.ones(8).double(), rtol=1e-5, atol=0)
    assert (h[3] == 0).all()
    attained = (h.double() * (g.double() / scale)).flatten(1).sum(1)
    torch.testing.assert_close(attained, norm(g.double() / scale, conjugate(s)), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(ground.dual_norms(g), norm(g.double() / scale, conjugate(s)) * scale, rtol=1e-5, atol=0)


def test_direction_for_s1_splits_over_ties_only():
    h = GroundNorm(1).direction(torch.tensor([[3.0, -3.0, 2.999, 0.0]]))
    torch.testing.assert_close(h, torch.tensor([[0.5, -0.5, 0.0, 0.0]]))


@pytest.mark.parametrize("s", NORMS)
def test_shrink_is_pointwise(s):
    """Far displacements end on the sphere, near ones stay where they are (the 2023 code pushed them out)."""
    u = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(4)).double()
    u[0] *= 1e-6
    u[1] = 0
    ground = GroundNorm(s)
    radii = torch.full((6,), 0.3).double()
    v = ground.shrink(u, ground.distances(u), radii)
    assert torch.equal(v[:2], u[:2])
    torch.testing.assert_close(norm(v[2:], s), torch.full((4,), 0.3).double(), rtol=1e-6, atol=0)
    if s in (2.0, INF):  # scaling and clipping are the Euclidean projections there
        other = u + 0.05 * torch.randn_like(u)
        inside = ground.shrink(other, ground.distances(other), radii)
        assert (norm(u - v, 2) <= norm(u - inside, 2) + 1e-9).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    hnp.arrays(np.float32, (3, 5), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([1.0, 1.5, 2.0, INF]),
    st.integers(-126, 120),
)
def test_the_host_looks_and_a_device_scales_to_the_same_bits(values, order, exponent):
    u, ground = torch.from_numpy(values) * 2.0**exponent, GroundNorm(order)

    def computed():
        return image_norms(u, order), ground.direction(u), ground.direction(u, into=u.clone())

    on_host = computed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "may_look", lambda values: False)
        on_device = computed()
    for one, other in zip(on_host, on_device, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(on_host[1], on_host[2])

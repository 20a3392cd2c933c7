"""Networks that are 1-Lipschitz by construction: constants by Jacobians, by power iteration, by pairs of images."""

import copy

import pytest
import torch
from torch import nn

from wdro_train.models import lipschitz_cnn, lipschitz_mlp
from wdro_train.models.lipschitz_layers import OrthogonalLinear, PadChannels, ResidualConvolution, SortPairs
from wdro_train.theory.lipschitz import KnownLipschitz
from wdro_train.utils.errors import UserError

NETWORKS = {
    "mlp": lambda: lipschitz_mlp((1, 8, 8), 4, [0.3], [0.2], width=12, depth=3),
    "wide_mlp": lambda: lipschitz_mlp((2, 4, 4), 3, [0.3, 0.4], [0.2, 0.5], width=40, depth=2),
    "cnn": lambda: lipschitz_cnn((1, 8, 8), 4, [0.3], [0.2], channels=6, blocks=2, width=12, depth=1),
}
SHAPES = {"mlp": (1, 8, 8), "wide_mlp": (2, 4, 4), "cnn": (1, 8, 8)}
LAYERS = {
    "orthogonal": (lambda: OrthogonalLinear(20, 8), (20,)),
    "orthogonal_tall": (lambda: OrthogonalLinear(8, 20), (8,)),
    "sorted": (SortPairs, (6, 4, 4)),
    "padded": (lambda: PadChannels(5), (3, 4, 4)),
    "residual": (lambda: ResidualConvolution(3, 7), (3, 6, 5)),
    "residual_large_kernel": (lambda: ResidualConvolution(2, 3, kernel=5), (2, 6, 6)),
}


def disturbed(module, seed=0, offset=0.0):
    """The module with parameters far from where they begin."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean().clamp(min=0.1)
            if name.endswith("bias"):
                parameter += offset * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def norms(u):
    return torch.linalg.vector_norm(u.double().flatten(1), dim=1)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_stretches_no_more_than_it_says(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = disturbed(make())
    assert isinstance(layer, KnownLipschitz)
    bound = layer.lipschitz_bound(shape)
    assert bound.constant <= 1 + 1e-6
    exact = copy.deepcopy(layer).double()
    for x in 3 * torch.randn(5, *shape).double():
        jacobian = torch.func.jacrev(lambda image: exact(image[None])[0].flatten())(x).flatten(1)
        assert torch.linalg.matrix_norm(jacobian, ord=2) <= bound.constant * (1 + 1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("name", LAYERS)
def test_float32_strays_no_farther_than_a_layer_says(name, offset):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = disturbed(make(), offset=offset)
    bound, exact = layer.lipschitz_bound(shape), copy.deepcopy(layer).double()
    for scale in (1e-3, 1.0, 1e3):
        x = scale * torch.randn(200, *shape)
        with torch.no_grad():
            error = norms(layer(x).double() - exact(x.double()))
        assert (error <= bound.relative * norms(x) + bound.absolute).all()


def test_the_diagonal_dominates_the_convolution_with_its_zero_padding():
    torch.manual_seed(0)
    layer = disturbed(ResidualConvolution(3, 5)).double()
    eye = torch.eye(3 * 5 * 4, dtype=torch.float64).view(-1, 3, 5, 4)
    matrix = nn.functional.conv2d(eye, layer.kernel, padding=1).flatten(1).T
    diagonal = layer.dominating().repeat_interleave(5 * 4)
    least = torch.linalg.eigvalsh(torch.diag(diagonal) - matrix @ matrix.T)[0]
    assert least >= -1e-9
    assert least < diagonal.max()  # and is not merely enormous
    assert torch.linalg.matrix_norm(matrix, ord=2) > 1.5  # the convolution itself stretches


def test_orthogonal_layers_keep_the_norm_of_gradients():
    for inputs, outputs in ((20, 8), (8, 20), (9, 9)):
        weight = disturbed(OrthogonalLinear(inputs, outputs)).weight(torch.float64)
        values = torch.linalg.svdvals(weight)
        assert values.max() <= 1
        assert values.min() > 1 - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_no_pair_of_images_violates_the_constant(name):
    """10,000 pairs: random, close by, and found by ascending the ratio of the distances."""
    torch.manual_seed(0)
    net = disturbed(NETWORKS[name]())
    x = torch.rand(4000, *SHAPES[name])
    others = [torch.rand_like(x), (x + 1e-2 * torch.randn_like(x)).clamp(0, 1)]
    found, start = x[:2000], (x[:2000] + 1e-2 * torch.randn_like(x[:2000])).clamp(0, 1)
    for _ in range(15):
        start.requires_grad_()
        ratio = (net(start) - net(found)).flatten(1).norm(dim=1) / (start - found).flatten(1).norm(dim=1)
        (gradient,) = torch.autograd.grad(ratio.sum(), start)
        step = gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
        start = (start + 0.02 * step).clamp(0, 1).detach()
    with torch.no_grad():
        for images, other in [*((x, other) for other in others), (found, start)]:
            moved, apart = norms(net(images) - net(other)), norms(images - other)
            assert (moved <= apart + 1e-5).all()
        assert (norms(net(found) - net(start)) / norms(found - start)).max() > 0.5  # the ascent finds something


@pytest.mark.parametrize("name", NETWORKS)
def test_power_iteration_finds_no_larger_constant(name):
    torch.manual_seed(0)
    net = disturbed(NETWORKS[name]()).double()
    x = torch.rand(50, *SHAPES[name], dtype=torch.float64)
    direction = torch.randn_like(x)
    for _ in range(20):
        direction = direction / norms(direction).view(-1, 1, 1, 1)
        forward = torch.func.jvp(net, (x,), (direction,))[1]
        (back,) = torch.autograd.functional.vjp(net, x, forward)[1:]
        direction = back
    assert norms(direction).max() <= 1 + 1e-6
    assert norms(direction).max() > 0.2


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_takes_a_gradient(name):
    net = disturbed(NETWORKS[name]()).train()
    net(torch.rand(6, *SHAPES[name])).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: lipschitz_mlp((1, 8, 8), 4, [0.3], [0.2], width=13), r"model\.width=13"),
        (lambda: lipschitz_mlp((1, 8, 8), 4, [0.3], [0.2], depth=0), r"model\.depth=0"),
        (lambda: lipschitz_cnn((1, 9, 8), 4, [0.3], [0.2]), "sides divisible by 4"),
        (lambda: lipschitz_cnn((3, 8, 8), 4, [0.3] * 3, [0.2] * 3, channels=8), r"model\.channels=8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, text):
    with pytest.raises(UserError, match=text):
        make()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused_in_a_sentence(dtype):
    layer = OrthogonalLinear(4, 4).to(dtype)
    with pytest.raises(UserError, match=r"choose trainer\.precision=bf16-mixed"):
        layer(torch.rand(2, 4, dtype=dtype))


def test_weights_that_diverged_give_nan_and_no_exception():
    layer = OrthogonalLinear(4, 4)
    with torch.no_grad():
        layer.free.fill_(torch.inf)
    assert layer(torch.rand(2, 4)).isnan().all()

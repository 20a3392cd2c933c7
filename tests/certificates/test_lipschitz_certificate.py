"""The certificate of Lipschitz constants: closed forms, attacks, rounding, and what it refuses."""

import copy
import math

import pytest
import torch
from oracles import reference_images, reference_network
from torch import nn

from wdro_train.attacks.minimal_distance import MinimalDistance
from wdro_train.certificates import LipschitzCertificate
from wdro_train.models import Normalize, lipschitz_cnn, lipschitz_mlp, small_cnn
from wdro_train.models.lipschitz_layers import OrthogonalLinear, SortPairs
from wdro_train.theory.losses import correct, margin
from wdro_train.utils.errors import UserError

SHAPE = (2, 8, 8)
NETWORKS = {
    "mlp": lambda: lipschitz_mlp(SHAPE, 4, [0.4, 0.5], [0.3, 0.2], width=16, depth=2),
    "cnn": lambda: lipschitz_cnn(SHAPE, 4, [0.4, 0.5], [0.3, 0.2], channels=8, blocks=1, width=16, depth=1),
    "convolutions": lambda: nn.Sequential(
        *(Normalize([0.4, 0.5], [0.5, 0.4]), nn.Conv2d(2, 6, 3, padding=1, stride=2), nn.LeakyReLU(0.2)),
        *(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2, dilation=2, padding=2), nn.ReLU(), nn.AvgPool2d(3, 1)),
        *(nn.Flatten(), nn.Dropout(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)),
    ),
    "pooled": lambda: nn.Sequential(
        *(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2), nn.PixelUnshuffle(2), nn.Conv2d(8, 5, 2), nn.ReLU()),
        *(nn.Flatten(), OrthogonalLinear(5, 6), SortPairs(), nn.Sequential(nn.Linear(6, 4))),
    ),
}


def built(name, seed=0, count=40, offset=0.0):
    """A network in evaluation mode, images, and labels that most of its answers agree with."""
    torch.manual_seed(seed)
    net = NETWORKS[name]()
    x = torch.rand(count, *SHAPE)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.2 * torch.randn_like(parameter) * parameter.abs().mean()
        net.train()
        net(x)
        net.eval()
        biases = [p for key, p in net.named_parameters() if key.endswith("bias")]
        for bias in biases[:-1]:
            bias += offset * torch.rand_like(bias)
        biases[-1].sub_(net(x).mean(0))
    return net, x, net(x).argmax(1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_found_nearer_than_the_radius(name, seed):
    net, x, y = built(name, seed)
    found = LipschitzCertificate()(net, x, y)
    attack = MinimalDistance(norm=2, steps=40, restarts=2, targets=3)(net, x, y).distances
    assert (found.radii <= attack).all()
    assert (found.radii > 0).float().mean() > 0.5
    assert attack.isfinite().any()
    wrong = LipschitzCertificate()(net, x, (y + 1) % 4)
    assert not wrong.correct.any()
    assert (wrong.radii == 0).all()


@pytest.mark.parametrize("orthogonal", [True, False])
def test_exact_on_affine_networks(orthogonal):
    """The distance to a hyperplane is the lead over the rival by the length of the difference of the gradients."""
    torch.manual_seed(0)
    body = [OrthogonalLinear(128, 128)] if orthogonal else []
    net = nn.Sequential(Normalize([0.5, 0.4], [0.25, 0.25]), nn.Flatten(), *body, nn.Linear(128, 4)).eval()
    x = 0.4 + 0.2 * torch.rand(50, *SHAPE)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)
    y = net(x).argmax(1)
    true = copy.deepcopy(net).double()
    rows = torch.func.jacrev(lambda image: true(image[None])[0])(x[0].double()).flatten(1)
    logits = true(x.double())
    gaps = logits.gather(1, y[:, None]) - logits
    lengths = torch.linalg.vector_norm(rows[y][:, None] - rows, dim=2)
    exact = (gaps / lengths).scatter(1, y[:, None], math.inf).amin(1).detach()
    found = LipschitzCertificate()(net, x, y).radii
    assert (found <= exact * (1 + 1e-6)).all()
    assert (exact - found).max() < 3e-3  # what float32 may be off by
    assert exact.max() > 20 * (exact - found).median()
    attack = MinimalDistance(norm=2, steps=30)(net, x, y).distances
    assert (attack - found).median() < 5e-3


@pytest.mark.parametrize("offset", [0.0, 300.0, 1e4])
@pytest.mark.parametrize("name", ["mlp", "convolutions"])
def test_float32_has_no_flip_inside_whatever_the_offsets(name, offset):
    """The steepest step towards every rival, scaled to the certified radius and computed in float32."""
    for seed in range(4):
        net, x, y = built(name, seed, count=60, offset=offset)
        radii = LipschitzCertificate()(net, x, y).radii
        assert (radii > 0).any() or offset > 0
        for rival in range(4):
            images = x.clone().requires_grad_()
            logits = net(images)
            lead = logits.gather(1, y[:, None]).squeeze(1) - logits[:, rival]
            (gradient,) = torch.autograd.grad(lead.sum(), images)
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            for share in (0.5, 0.999):
                moved = (x - share * (radii.view(-1, 1, 1, 1).float() / length) * gradient).clamp(0, 1)
                sure = (radii > 0) & radii.isfinite()
                assert correct(net(moved), y)[sure].all()


def test_rounding_is_taken_off_where_values_are_large():
    taken = {offset: largest_allowance(offset) for offset in (0.0, 1e2, 1e4)}
    assert 0 < taken[0.0] < 2e-3
    assert 10 * taken[0.0] < taken[1e2] < taken[1e4] / 10


def largest_allowance(offset):
    """By how much the largest radius falls short of what real arithmetic would certify."""
    net, x, y = built("mlp", offset=offset)
    radii = LipschitzCertificate()(net, x, y).radii
    real = margin(copy.deepcopy(net).double()(x.double()), y) / math.sqrt(2)
    return (real - radii)[real.argmax()].item()


def test_batches_and_modes_do_not_matter():
    net, x, y = built("convolutions")
    whole = LipschitzCertificate()(net, x, y)
    net.train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parts = LipschitzCertificate(batch_size=7)(net, x, y)
    torch.testing.assert_close(parts.radii, whole.radii, rtol=1e-4, atol=1e-7)
    assert net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert (whole.norm, whole.level, whole.about) == (2.0, 1.0, "the network itself")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(LipschitzCertificate()(net, x, y).radii, whole.radii, rtol=1e-4, atol=1e-7)


def test_the_last_layer_is_judged_pair_by_pair():
    """Two classes whose rows are close: the product of the constants would certify far less."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[10.0, 0, 0, 0], [10.0, 0.1, 0, 0]]))
        net[1].bias.copy_(torch.tensor([0.0, -0.1]))
    x = torch.full((1, 1, 2, 2), 0.5)
    assert LipschitzCertificate()(net, x, torch.tensor([0])).radii.item() == pytest.approx(0.5, rel=1e-2)


def hooked():
    net = NETWORKS["mlp"]()
    net[2].register_forward_hook(lambda module, inputs, output: 3 * output)
    return net


def replaced():
    net = NETWORKS["mlp"]()
    net[3].forward = lambda x: 3 * x
    return net


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Outside(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (hooked, r"layer 2 \(OrthogonalLinear\) has a hook"),
        (replaced, r"layer 3 \(SortPairs\) has a hook or a replaced forward"),
        (lambda: nn.Sequential(nn.Flatten(), Doubled(128, 4)), r"layer 1 \(Doubled\) has no known Lipschitz constant"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Softplus(), nn.Linear(128, 4)), r"layer 1 \(Softplus\)"),
        (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.Flatten()), "Conv2d"),
        (lambda: nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(32, 4)), "AvgPool2d"),
        (lambda: Outside(nn.Flatten(), nn.Linear(128, 4)), r"layer model \(Outside\)"),
    ],
)
def test_what_is_not_known_is_named(make, text):
    with pytest.raises(UserError, match=text):
        LipschitzCertificate()(make(), torch.rand(2, *SHAPE), torch.tensor([0, 1]))


def test_a_network_in_half_precision_is_refused():
    net = NETWORKS["convolutions"]().bfloat16().eval()
    net = nn.Sequential(Cast(), net)
    with pytest.raises(UserError, match=r"bfloat16.*model\.float"):
        LipschitzCertificate()(net, torch.rand(2, *SHAPE), torch.tensor([0, 1]))


class Cast(nn.Module):
    def forward(self, x):
        return x.bfloat16()


def test_other_norms_and_batch_sizes_are_refused():
    for norm in (1, math.inf):
        with pytest.raises(UserError, match=r"l_2 norm.*choose attack\.norm=2"):
            LipschitzCertificate(norm=norm)
    with pytest.raises(UserError, match="batch_size=0"):
        LipschitzCertificate(batch_size=0)


def test_any_network_of_known_layers_is_certified():
    x, y = (part[:20] for part in reference_images())
    net = reference_network("adversarial")
    found = LipschitzCertificate()(net, x, y)
    attack = MinimalDistance(norm=2, steps=30)(net, x, y).distances
    assert (found.radii[found.correct] > 0).any()
    assert (found.radii <= attack).all()
    assert LipschitzCertificate()(small_cnn((1, 28, 28), 10, [0.3], [0.35]), x, y).radii.isfinite().all()

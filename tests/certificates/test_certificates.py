"""Certificates against closed forms, exact enumeration of small networks, and attacks."""

import copy
import math

import numpy as np
import pytest
import torch
from enumeration import nearest_flip
from oracles import conjugate, norm, random_batch, reference_images, reference_network
from scipy.stats import binom, binomtest
from scipy.stats import norm as gaussian
from torch import nn

from wdro_train.attacks import WPGD
from wdro_train.attacks.minimal_distance import MinimalDistance
from wdro_train.certificates import LinearRelaxation, RandomizedSmoothing
from wdro_train.certificates.affine_pieces import AffinePieces
from wdro_train.certificates.relaxation import BOUNDS
from wdro_train.certificates.relaxed_network import RelaxedNetwork
from wdro_train.models import Normalize, small_cnn
from wdro_train.theory.losses import correct, margin
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.errors import UserError

SHAPE = (2, 9, 8)
NORMS = [1, 2, math.inf]
ARCHITECTURES = {
    "small_cnn": lambda: small_cnn((2, 8, 8), 4, [0.4, 0.5], [0.3, 0.2], width=3),
    "linear": lambda: nn.Sequential(*head(20), nn.ReLU(), *head(20), nn.ReLU(), *head()),
    "no_bias": lambda: nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), *head(bias=False)),
    "uneven": lambda: nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 3), padding=(2, 1)), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU(), *head()
    ),
    "padded_twice": lambda: nn.Sequential(
        *(Normalize([0.3, 0.6], [0.2, 0.1]), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 4, padding=2, stride=3), nn.ReLU(), *head()),
    ),
    "dilated_groups": lambda: nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2), nn.Identity(), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 2, 1), nn.ReLU(), *head()),
    ),
    "pool_and_batch_norm": lambda: nn.Sequential(
        *(nn.BatchNorm2d(2), nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(3, 2, 1)),
        *(
            nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(120, 8)),
            nn.BatchNorm1d(8, affine=False),
            nn.ReLU(),
            *head(),
        ),
    ),
    "one_large_window": lambda: nn.Sequential(
        *(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 20, 4, padding=1, stride=2), nn.ReLU()), *head()
    ),
}


def head(classes=4, bias=True):
    return nn.Flatten(), nn.LazyLinear(classes, bias=bias)


def built(name, seed=0):
    """A network in evaluation mode with random BatchNorm statistics, images, and the labels it gives them."""
    torch.manual_seed(seed)
    net = ARCHITECTURES[name]().eval()
    x = (1.5 * torch.rand(6, *((2, 8, 8) if name == "small_cnn" else SHAPE)) - 0.25).clamp(0, 1)
    net(x)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_at_radius_zero_the_bound_is_the_margin(name):
    net, x, y = built(name)
    bound = RelaxedNetwork(net, x, torch.float64).margins(x, y, torch.zeros(6, dtype=torch.float64), 2)
    torch.testing.assert_close(bound, margin(net.double()(x.double()), y), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("s", NORMS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_flips_inside_and_the_attack_is_outside(name, s):
    net, x, y = built(name)
    crown, ibp = (LinearRelaxation(norm=s, method=m)(net, x, y).radii for m in ("crown", "ibp"))
    attack = MinimalDistance(norm=s, steps=60, targets=3)(net, x, y).distances
    assert (ibp > 0).all()
    assert (ibp <= crown * 1.006).all()
    assert (crown <= attack).all()
    if s == math.inf:
        corners = (x + crown.view(-1, 1, 1, 1) * torch.randn(500, *x.shape).sign()).clamp(0, 1).float()
        assert correct(net(corners.flatten(0, 1)), y.repeat(500)).all()
        for i, radius in enumerate(crown.tolist()):
            inside = WPGD(p=math.inf, norm=s, delta=radius, steps=20, loss="ce", random_start=False)(
                net, x[i : i + 1], y[i : i + 1]
            )
            assert correct(net(inside.x_adv), y[i : i + 1]).all()


@pytest.mark.parametrize("s", NORMS)
@pytest.mark.parametrize("convolutional", [False, True])
def test_exact_on_affine_networks(s, convolutional):
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.AvgPool2d(2, 1), *head()) if convolutional else head()
    net = nn.Sequential(Normalize([0.5], [0.3]), *layers).eval()
    x = 0.45 + 0.1 * torch.rand(40, 1, 6, 6)
    net(x)
    with torch.no_grad():
        net[-1].bias -= net(x).mean(0)  # every class is some image's, and margins are small against the box
    y = net(x).argmax(1)
    exact = copy.deepcopy(net).double()
    rows = torch.func.jacrev(lambda image: exact(image[None])[0])(x[0].double()).flatten(1)
    gaps = rows[y][:, None] - rows[None]
    lengths = torch.linalg.vector_norm(gaps, ord=conjugate(s), dim=2)
    margins = exact(x.double()).gather(1, y[:, None]) - exact(x.double())
    true = (margins / lengths).scatter(1, y[:, None], math.inf).amin(1).detach()
    for method in BOUNDS:
        found = LinearRelaxation(norm=s, method=method, tolerance=5e-4, arithmetic="exact")(net, x, y).radii
        logits = net(x)
        clear = margin(logits, y) > 0.01 * logits.abs().amax(1)  # the search's rounding is nothing there
        assert clear.sum() > 20
        assert (found <= true * (1 + 1e-6)).all()
        if method == "ibp" and convolutional:
            continue  # interval arithmetic bounds one affine layer after another, and forgets what they share
        torch.testing.assert_close(found[clear], true[clear], rtol=1e-3, atol=0)


def test_box_is_used():
    net = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.5, 0.5, 0.5, 0.5], [-0.5, -0.5, -0.5, -0.5]]))
        net[0].bias.copy_(torch.tensor([-0.4, 0.4]))
    x, y = torch.tensor([[0.0, 0.0, 0.8, 0.9], [0.1, 0.9, 0.9, 0.9]]), torch.tensor([0, 0])  # margin sum(x) - 0.8
    found = {s: LinearRelaxation(norm=s, tolerance=5e-4)(net, x, y).radii.tolist() for s in NORMS}
    assert found[math.inf] == pytest.approx([0.9 / 2, 1.9 / 3], rel=1e-3)
    assert found[2][0] == pytest.approx(0.9 / math.sqrt(2), rel=1e-3)
    assert found[1] == pytest.approx([0.9, 2.0], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("s", [1, math.inf])
def test_never_past_the_exact_distance(s):
    """Small networks are where an unsound relaxation shows: the bound is nearly tight."""
    shares = []
    for seed in range(6):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        with torch.no_grad():
            for layer in (net[0], net[2]):
                layer.weight.normal_()
                layer.bias.normal_(std=0.5)
        x = torch.rand(5, 2)
        y = net(x).argmax(1)
        exact = np.array([nearest_flip(net, image, int(label), s) for image, label in zip(x, y, strict=True)])
        found = LinearRelaxation(norm=s, tolerance=1e-3)(net, x, y).radii.numpy()
        assert (found <= exact * (1 + 1e-6)).all()
        finite = np.isfinite(exact)
        shares += (found[finite] / exact[finite]).tolist()
    assert np.quantile(shares, 0.75) > 0.99
    assert np.median(shares) > 0.8


def test_intermediate_bounds_hold_at_every_neuron():
    """Each neuron of the second layer in turn is made the margin, and compared with sampled values."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, stride=2, padding=1))
    x, _ = random_batch(2)
    points = (x + 0.1 * torch.randn(2000, *x.shape).sign()).clamp(0, 1)
    values = first(points.flatten(0, 1)).view(2000, 2, -1).amin(0)
    for neuron in range(values.shape[1]):
        read = nn.Linear(values.shape[1], 2)
        with torch.no_grad():
            read.weight.copy_(torch.eye(values.shape[1])[neuron] * torch.tensor([[1.0], [0.0]]))
            read.bias.zero_()
        network = RelaxedNetwork(nn.Sequential(first, nn.Flatten(), read), x, torch.float64)
        bound = network.margins(x, torch.zeros(2).long(), torch.full((2,), 0.1).double(), math.inf)
        assert (bound <= values[:, neuron] + 1e-6).all()
        assert (bound >= values[:, neuron] - 0.7).all()


@pytest.mark.slow
@pytest.mark.parametrize(("s", "share"), [(math.inf, 0.5), (2, 0.1)])
def test_reference_network_is_enclosed(s, share):
    x, y = (part[:12] for part in reference_images())
    net = reference_network("adversarial")
    certificate = LinearRelaxation(norm=s, tolerance=2e-2)(net, x, y)
    attack = MinimalDistance(norm=s)(net, x, y)
    assert (certificate.correct == attack.clean_correct).all()
    assert (certificate.radii[~attack.clean_correct] == 0).all()
    assert (certificate.radii <= attack.distances).all()
    right = attack.clean_correct
    assert (certificate.radii[right] / attack.distances[right]).median() > share
    below, above = RobustnessCurve(certificate.radii), RobustnessCurve(attack.distances)
    for p in (1, 1.5, 2, math.inf):
        deltas = np.linspace(0, 0.2, 9)
        assert (below.accuracies(deltas, p) <= above.accuracies(deltas, p) + 1e-12).all()


def test_result_of_the_relaxation():
    net, x, y = built("pool_and_batch_norm")
    net.train()
    y[0] = (y[0] + 1) % 4
    result = LinearRelaxation(norm="inf", batch_size=2)(net, x, y)
    assert net.training
    assert (result.norm, result.level, result.about) == (math.inf, 1.0, "the network itself")
    assert result.correct.tolist() == [False, *[True] * 5]
    assert result.radii.dtype == torch.float64
    assert result.radii[0] == 0
    alone = LinearRelaxation(norm="inf")(net, x[3:4], y[3:4]).radii
    assert alone.item() == pytest.approx(result.radii[3].item(), rel=1e-3)


@pytest.mark.parametrize("s", NORMS)
def test_no_flip_in_the_whole_box(s):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        net[-1].weight.mul_(0.01)
        net[-1].bias.copy_(torch.tensor([1.0, 0.0]))
    x, _ = random_batch(3)
    assert LinearRelaxation(norm=s)(net, x, torch.zeros(3).long()).radii.tolist() == [math.inf] * 3


def test_interval_bounds_help_linear_ones():
    """relu(3 x - 1) + 0.1 > 0 is plain from the interval, and lost to the linear bound relu(z) >= z."""
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), ([[3.0]], [-1.0], [[1.0], [0.0]], [0.1, 0.0]), strict=True):
            parameter.copy_(torch.tensor(value))
    assert LinearRelaxation(norm="inf")(net, torch.tensor([[0.5]]), torch.tensor([0])).radii.item() == math.inf


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (nn.Tanh(), r"1\.0 \(Tanh"),
        (nn.MaxPool2d(2), "MaxPool2d"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "Conv2d"),
        (nn.Conv2d(1, 1, 3, padding="same"), "Conv2d"),
        (nn.AvgPool2d(2, ceil_mode=True), "AvgPool2d"),
        (nn.BatchNorm2d(1, track_running_stats=False), "BatchNorm2d"),
        (Doubled(nn.Identity()), "Doubled"),
        (nn.Linear(6, 6), "Linear"),
    ],
)
def test_other_layers_are_named(layer, named):
    x, y = random_batch(2)
    net = nn.Sequential(nn.Identity(), nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(5)))
    net(x)
    with pytest.raises(UserError, match=named):
        LinearRelaxation(norm=2)(net, x, y)


def test_of_a_whole_network_a_refusal_shows_the_name_alone():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*[nn.Linear(4, 4) for _ in range(30)])

        def forward(self, x):
            return self.layers(x.flatten(1))

    x = torch.rand(2, 1, 2, 2)
    with pytest.raises(UserError, match=r"layer model \(Network\) on input .* choose alpha_crown, crown_ibp or ibp"):
        LinearRelaxation(norm=2)(Network(), x, torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"layer model \(Network\) has no exact encoding"):
        AffinePieces(Network())


def test_hooks_are_noticed():
    x, y = random_batch(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    net[0].register_forward_hook(lambda module, args, output: output + 1)
    with pytest.raises(UserError, match="hook"):
        LinearRelaxation(norm=2)(net, x, y)


@pytest.mark.parametrize(
    "options", [{"norm": 3}, {"norm": 2, "method": "lp"}, {"norm": 2, "tolerance": 0}, {"norm": 2, "batch_size": 0}]
)
def test_relaxation_refuses(options):
    with pytest.raises(UserError):
        LinearRelaxation(**options)


def half_space(pixels=36):
    """A linear classifier with two classes, and the signed distance of images from its boundary."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 2))
    gap = (net[1].weight[0] - net[1].weight[1]).detach()
    return net, lambda x: ((net(x)[:, 0] - net(x)[:, 1]) / norm(gap[None], 2)).detach().double()


def test_smoothing_a_linear_classifier():
    net, signed_distance = half_space()
    x = torch.rand(300, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    true = signed_distance(x)
    y = (true < 0).long()
    sigma = 0.5 * true.abs().median().item()
    smoothing = RandomizedSmoothing(sigma=sigma, total_images=300, n=4000, alpha=0.05)
    result = smoothing(net, x, y, generator=torch.Generator().manual_seed(0))
    assert (result.radii <= true.abs()).all()
    usual = (true.abs() > 0.5 * sigma) & (true.abs() < 1.5 * sigma)
    assert usual.sum() > 20
    assert (result.radii[usual] / true.abs()[usual]).min() > 0.7
    assert result.radii.max() < sigma * gaussian.ppf((0.05 / 300) ** (1 / 4000)) * 1.001
    assert (result.norm, result.level) == (2, 0.95)
    assert f"{sigma:g}" in result.about
    hasty = RandomizedSmoothing(sigma=sigma, total_images=300, n0=1, n=4000, alpha=0.05)  # lets wrong labels through
    wrong = hasty(net, x, 1 - y, generator=torch.Generator().manual_seed(0))
    assert (wrong.radii == 0).all()
    assert wrong.correct[true.abs() > 0.1 * sigma].sum() == 0
    assert result.correct[true.abs() > 0.1 * sigma].all()


@pytest.mark.parametrize("p", [0.501, 0.6, 0.9, 0.999])
@pytest.mark.parametrize(("alpha", "total_images"), [(0.1, 1), (0.05, 10), (0.5, 1000)])
def test_radius_fails_no_more_often_than_its_level(p, alpha, total_images):
    smoothing = RandomizedSmoothing(sigma=0.5, total_images=total_images, n=500, alpha=alpha)
    counts = np.arange(501)
    radii = smoothing.radius(torch.as_tensor(counts)).numpy()
    failure = binom.pmf(counts, 500, p)[radii > 0.5 * gaussian.ppf(p)].sum()
    assert failure <= alpha / total_images
    if p < 0.99:
        assert failure > 0.3 * alpha / total_images


@pytest.mark.parametrize("count", [0, 1, 250, 300, 499, 500])
def test_clopper_pearson(count):
    smoothing = RandomizedSmoothing(sigma=0.25, total_images=20, n=500, alpha=0.01)
    interval = binomtest(count, 500, alternative="greater").proportion_ci(1 - 0.01 / 20, method="exact")
    expected = max(0.0, 0.25 * gaussian.ppf(interval.low))
    assert smoothing.radius(torch.tensor([count])).item() == pytest.approx(expected, rel=1e-6, abs=1e-12)


class Brightest(nn.Module):
    """Class k where pixel k is on and no other; class 0 is NaN if the last pixel is on."""

    def forward(self, x):
        z = x.flatten(1).round()
        return torch.where((z[:, -1:] > 0) & (torch.arange(4) == 0), torch.nan, z[:, :4])


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_votes_go_to_their_image(batch_size):
    x = torch.zeros(6, 1, 2, 3)  # the fifth is a tie
    for image, pixel in {0: 2, 1: 0, 2: 3, 3: 1, 5: -1}.items():
        x[image].view(-1)[pixel] = 1.0
    smoothing = RandomizedSmoothing(sigma=0.02, total_images=6, n0=30, n=40, batch_size=batch_size)
    result = smoothing(Brightest(), x, torch.tensor([2, 0, 3, 1, 0, 0]), generator=torch.Generator().manual_seed(0))
    full = smoothing.radius(torch.tensor([40])).item()
    assert full > 0
    assert result.radii.tolist() == [full] * 4 + [0, 0]
    assert result.correct.tolist() == [True] * 4 + [False, False]


@pytest.mark.parametrize("label", range(4))
def test_a_tie_is_nobodys_vote(label):
    smoothing = RandomizedSmoothing(sigma=0.02, total_images=1, n=40)
    assert not smoothing(Brightest(), torch.zeros(1, 1, 2, 3), torch.tensor([label])).correct


def test_noise_is_not_clamped():
    """Half of the noise on a black image is negative, and the network sees it."""

    def share(x):
        return torch.stack([(x < 0).float().flatten(1).mean(1), torch.full((len(x),), 0.4)], 1)

    model = nn.Identity()
    model.forward = share
    smoothing = RandomizedSmoothing(sigma=0.1, total_images=1, n=100)
    assert smoothing(model, torch.zeros(1, 1, 20, 20), torch.tensor([0])).correct.all()


@pytest.mark.parametrize("options", [{"sigma": 0}, {"alpha": 1}, {"alpha": 0}, {"n": 0}, {"total_images": 0}])
def test_smoothing_refuses(options):
    with pytest.raises(UserError):
        RandomizedSmoothing(**({"sigma": 0.1, "total_images": 5} | options))


def test_more_images_than_announced():
    x, y = random_batch(6)
    with pytest.raises(UserError, match="total_images=5"):
        RandomizedSmoothing(sigma=0.1, total_images=5)(nn.Flatten(), x, y)

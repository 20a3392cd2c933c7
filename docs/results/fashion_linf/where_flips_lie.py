"""Where the flips lie that AutoAttack's gradient attacks find and a short search for the nearest flip does not.

    python docs/results/fashion_linf/where_flips_lie.py CKPT D

prints the rows of the first table of `frontier.md` for a network, as JSON; `where_flips_lie.jsonl` has those of the
page. D is the marginal distance at the end of the training, up to which its attack went. The first 1,000 test images,
l_inf 0.1.
"""

import json
import math
import sys

import torch
from torch import Tensor, nn

from wdro_train.attacks import BoundaryAttack, Fixed, MinimalDistance
from wdro_train.attacks.mode import attack_mode
from wdro_train.config.resolvers import register_resolvers
from wdro_train.evaluation.autoattack import autoattack
from wdro_train.evaluation.networks import load_network
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import GroundNorm, per_image
from wdro_train.theory.losses import correct
from wdro_train.tools.loading import split_on_device

IMAGES, RADIUS, BISECTIONS = 1000, 0.1, 12


def margins(model: nn.Module, x: Tensor, y: Tensor, rivals: Tensor) -> tuple[Tensor, Tensor]:
    """Margins over the rivals, shape [n], and their gradients, shape [n, pixels]."""
    x = x.clone().requires_grad_()
    logits = model(x)
    rows = torch.arange(len(y))
    values = logits[rows, y] - logits[rows, rivals]
    (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient.flatten(1)


@torch.no_grad()
def rivals_at(model: nn.Module, points: Tensor, y: Tensor) -> Tensor:
    """The strongest class other than the label at each point, shape [n]."""
    return model(points).scatter(1, y[:, None], -math.inf).argmax(1)


@torch.no_grad()
def brought_back(model: nn.Module, x: Tensor, flips: Tensor, y: Tensor) -> Tensor:
    """Distance at which the segment from image to flip is cut by bisection, shape [n]."""
    low, high = torch.zeros(len(x)), torch.ones(len(x))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        flipped = ~correct(model(x + per_image(middle, x) * (flips - x)), y)
        low, high = torch.where(flipped, low, middle), torch.where(flipped, middle, high)
    return GroundNorm(math.inf).distances(per_image(high, x) * (flips - x))


def main(checkpoint: str, reach: float) -> None:
    """Print a row for the images that APGD alone flips, and one for those that both flip."""
    register_resolvers()
    network = load_network(checkpoint)
    model = network.model.eval()
    x, y = split_on_device(network, "test", IMAGES)
    with attack_mode(model):
        near = MinimalDistance(norm=math.inf)(model, x, y, generator=torch.Generator().manual_seed(0))
        ball = WassersteinBall(math.inf, math.inf, RADIUS)
        points = autoattack(model, x, y, ball, attacks=["apgd-ce", "apgd-t"])
        training = BoundaryAttack(p=2, norm=math.inf, delta=RADIUS, marginal=Fixed(reach))
        trained = training(model, x, y, generator=torch.Generator().manual_seed(0))
        flipped = near.clean_correct & ~correct(model(points), y)
        distances = brought_back(model, x, points, y)
        groups = {"apgd only": flipped & (near.distances > RADIUS)}
        groups["both"] = flipped & (near.distances <= RADIUS) & (near.distances > RADIUS / 2)
        for name, mask in groups.items():
            rows = mask.nonzero().squeeze(1)
            images, labels, flips = x[rows], y[rows], points[rows]
            rivals = rivals_at(model, flips, labels)
            margin, at_image = margins(model, images, labels, rivals)
            _, half_way = margins(model, (images + flips) / 2, labels, rivals)
            _, at_flip = margins(model, flips, labels, rivals)
            steepness = at_image.abs().sum(1)
            ends = trained.x_adv[rows]
            far = trained.distances[rows] > RADIUS * (1 + 1e-3)
            values = {
                "MinimalDistance": near.distances[rows],
                "APGD": distances[rows],
                "margin": margin,
                "gradient": steepness,
                "half-way": half_way.abs().sum(1),
                "linear distance": margin / steepness,
                "cosine": torch.cosine_similarity(at_image, at_flip),
                "training distance": trained.distances[rows],
                "training cosine": torch.cosine_similarity((ends - images).flatten(1), (flips - images).flatten(1)),
            }
            shares = {
                "not the runner-up": rivals != rivals_at(model, images, labels),
                "not the search's class": rivals != rivals_at(model, near.x_adv[rows], labels),
                "flipped by training": ~correct(model(ends), labels),
                "flipped by training beyond the radius": ~correct(model(ends), labels) & far,
            }
            row = {"checkpoint": checkpoint, "group": name, "images": len(rows)}
            row |= {key: round(float(value.double().median()), 4) for key, value in values.items()}
            print(json.dumps(row | {key: round(float(value.double().mean()), 3) for key, value in shares.items()}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

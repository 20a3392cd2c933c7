"""What is left of a network of `frontier.md`: the figures of a row of `frontier.jsonl`, in per cent, as JSON.

    python docs/results/fashion_linf/judge_frontier.py CKPT [--average OTHER SHARE] [--autoattack]

Clean accuracy is on all test images; the worst cases are on the first 2,000, by `MinimalDistance` with 30 steps
(`usual`) and pooled with 50 steps, 2 restarts and 3 target classes (`more`); `apgd` is what AutoAttack's gradient
attacks leave at l_inf 0.1 on the first 500, `autoattack` its standard version.
"""

import argparse
import json
import math

import torch
from torch import Tensor, nn

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.config.resolvers import register_resolvers
from wdro_train.evaluation.autoattack import autoattack
from wdro_train.evaluation.networks import load_network
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools.loading import split_on_device
from wdro_train.utils.float32_precision import full_float32

BATCH, IMAGES, ATTACKED = 500, 2000, 500
RADIUS = 0.1


def distances(attack: MinimalDistance, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Distances of the images, in batches that share one source of random starts."""
    generator = torch.Generator().manual_seed(0)
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([attack(model, images, labels, generator=generator).distances for images, labels in batches])


def worst_cases(found: Tensor) -> dict[str, float]:
    """Accuracy left under W_inf, W_2 and W_1, in per cent."""
    curve = RobustnessCurve(found)
    left = {"W_inf": curve.accuracy(RADIUS, math.inf), "W_2": curve.accuracy(RADIUS, 2)}
    left |= {"W_2_05": curve.accuracy(RADIUS / 2, 2), "W_1": curve.accuracy(RADIUS, 1)}
    return {name: round(100 * value, 2) for name, value in left.items()}


def left_by(model: nn.Module, x: Tensor, y: Tensor, attacks: list[str] | None) -> float:
    """Accuracy that AutoAttack or some of its parts leave, in per cent."""
    points = autoattack(model, x, y, WassersteinBall(math.inf, math.inf, RADIUS), attacks=attacks)
    with torch.no_grad():
        kept = correct(forward(model, points), y) & correct(forward(model, x), y)
    return round(100 * float(kept.double().mean()), 2)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--average", nargs=2, metavar=("OTHER", "SHARE"), help="average the weights with another's")
    parser.add_argument("--autoattack", action="store_true", help="run its standard version, too")
    given = parser.parse_args()
    register_resolvers()
    network = load_network(given.checkpoint)
    model = network.model.eval()
    if given.average:
        other, share = load_network(given.average[0]).model.state_dict(), float(given.average[1])
        mine = model.state_dict()
        model.load_state_dict({name: torch.lerp(value, other[name], share) for name, value in mine.items()})
    x, y = split_on_device(network, "test", None)
    some, attacked = (x[:IMAGES], y[:IMAGES]), (x[:ATTACKED], y[:ATTACKED])
    with attack_mode(model), full_float32():
        with torch.no_grad():
            clean = correct(forward(model, x, BATCH), y).double().mean()
        usual = distances(MinimalDistance(norm=math.inf), model, *some)
        longer = distances(MinimalDistance(norm=math.inf, steps=50, restarts=2, targets=3), model, *some)
        row = {"clean": round(100 * float(clean), 2), "usual": worst_cases(usual)}
        row |= {"more": worst_cases(torch.minimum(usual, longer))}
        row |= {"apgd": left_by(model, *attacked, ["apgd-ce", "apgd-t"])}
        if given.autoattack:
            row |= {"autoattack": left_by(model, *attacked, None)}
    print(json.dumps(row))


if __name__ == "__main__":
    main()

"""Of which images do further runs of the minimum-norm attack lower the worst case? Rows as JSON.

    python docs/results/distances_effort/who_gains.py CKPT [--limit 500]

W_2, l_inf, radius 0.1, the first test images. After the first search (30 steps) seven further runs ask for every
correct image: from random points, towards the three strongest rivals, and from random points again. A row says of each
band of d / D, with D the marginal distance before the run, how many of the images that were asked for lay in it, and
which share they have in what the run saves: in the sum of min(d, D)^2 - min(d', D)^2, with d' the distance after it.
"""

import argparse
import json
import math
from itertools import pairwise

import torch

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.minimum_norm_rounds import MinimumNorm
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.rounds import AnyRival, OneRival
from wdro_train.attacks.starts import AtRandom
from wdro_train.config.resolvers import register_resolvers
from wdro_train.evaluation.effort import still_wanted
from wdro_train.evaluation.networks import load_network
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools.loading import split_on_device

BANDS = (0.0, math.sqrt(0.1), 0.5, 0.7, 0.85, 1.0, 1.15, math.inf)
STEPS = 30


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--limit", type=int, default=500)
    given = parser.parse_args()
    register_resolvers()
    network = load_network(given.checkpoint)
    model = network.model.eval()
    ball = WassersteinBall(2, math.inf, 0.1)
    x, y = split_on_device(network, "test", given.limit)
    generator = torch.Generator().manual_seed(0)
    again = MinimumNorm("random point", AtRandom(), AnyRival("soft_margin"), STEPS)
    aimed = [MinimumNorm(f"rival {k + 1}", AtRandom(), OneRival(k), STEPS) for k in range(3)]
    first = MinimalDistance(norm=math.inf, steps=STEPS)(model, x, y, generator=generator)
    known = NearestFlips(GroundNorm(math.inf), model, x, y, None)
    known.points, known.distances = first.x_adv, first.distances
    with attack_mode(model):
        for one in (again, *aimed, again, again, again):
            before = known.distances
            wanted = still_wanted(RobustnessCurve(before.numpy()), ball)
            asked = wanted.asked(before)
            one(known, wanted, generator=generator)
            saved = before.clamp(max=wanted.reach) ** 2 - known.distances.clamp(max=wanted.reach) ** 2
            bands = []
            for low, high in pairwise(BANDS):
                inside = asked & (before > low * wanted.reach) & (before <= high * wanted.reach)
                share = float(saved[inside].sum() / saved.sum())
                bands.append(
                    {"up to": str(round(high, 3)), "images": int(inside.sum()), "share saved": round(share, 3)}
                )
            left = RobustnessCurve(known.distances.numpy()).accuracy(ball.delta, ball.p)
            nearer = int((known.distances < before).sum())
            print(json.dumps({"run": one.kind, "nearer": nearer, "left": round(100 * left, 2), "bands": bands}))


if __name__ == "__main__":
    main()

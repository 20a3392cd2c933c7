"""Which runs flip the images that AutoAttack flips beyond the first search of `cifar_resnet20`; rows as JSON.

    python docs/results/distances_effort/few_images_left.py cifar_resnet20.th data/cifar10_jpeg

500 test images of CIFAR-10 (JPEG), l_inf, radius 1/255. The first row has the distances, in radii, of the images that
30 steps of `MinimalDistance` leave, and which of them AutoAttack flips. The others say of how many of their starts runs
flip each of the latter: from the image, from three random points, and momentum steps from the nearest flip, too.
"""

import argparse
import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.rounds import AdaptiveRound, AnyRival, OneRun, Round, Wanted
from wdro_train.attacks.starts import AtRandom, AtTheFlip, AtTheImage
from wdro_train.evaluation.autoattack import autoattack
from wdro_train.evaluation.networks import load_arrays, network_trained_elsewhere
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.losses import correct
from wdro_train.tools.network_arguments import composed

RADIUS, IMAGES, RANDOM_STARTS = 1 / 255, 500, 3
LOSSES = ("ce", "margin", "soft_margin", "dlr")


def runs() -> Iterator[tuple[dict[str, Any], OneRun]]:
    """What a row says of a run, and the run."""
    starts = {"image": AtTheImage(), "random": AtRandom(), "flip": AtTheFlip()}
    for steps in (30, 100):
        for loss in LOSSES:
            for name, start in starts.items():
                for size in (1.0, 3.0, 6.0):
                    about = {"steps_of": "momentum", "steps": steps, "size": size, "loss": loss, "start": name}
                    yield about, Round("", start, AnyRival(loss), steps, size)
                if name != "flip":
                    about = {"steps_of": "Auto-PGD", "steps": steps, "loss": loss, "start": name}
                    yield about, AdaptiveRound("", start, AnyRival(loss), steps)


def flipped(one: OneRun, model: nn.Module, x: Tensor, y: Tensor, points: Tensor, distances: Tensor) -> list[int]:
    """From how many starts a run flips each image."""
    times = torch.zeros(len(x), dtype=torch.int64)
    for seed in range(RANDOM_STARTS if isinstance(one.start, AtRandom) else 1):
        known = NearestFlips(GroundNorm(math.inf), model, x, y, None)
        known.points, known.distances = points.clone(), distances.clone()
        with attack_mode(model):
            one(known, Wanted(RADIUS, RADIUS), generator=torch.Generator().manual_seed(seed))
        times += known.distances <= RADIUS
    return times.tolist()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("images", help="the folder of CIFAR-10 as JPEG files")
    given = parser.parse_args()
    keys = ["model=own", "model._target_=wdro_train.tools.third_party_networks.ResNet20"]
    keys += [f"model.weights={given.weights}", "model.normalize=[[0.485,0.456,0.406],[0.229,0.224,0.225]]"]
    keys += ["data=cifar10_jpeg", f"data.root={given.images}", "attack.p=inf", "attack.norm=inf", "attack.delta=1/255"]
    network = network_trained_elsewhere(composed(keys), torch.device("cpu"))
    arrays, model = load_arrays(network.config, "test", IMAGES), network.model.eval()
    x, y = arrays.batch(torch.arange(IMAGES)), arrays.labels
    found = MinimalDistance(norm=math.inf)(model, x, y)
    left = (found.distances > RADIUS).nonzero().squeeze(1)
    with attack_mode(model), torch.no_grad():
        points = autoattack(model, x[left], y[left], WassersteinBall(math.inf, math.inf, RADIUS))
        theirs = ~correct(forward(model, points), y[left])
    order = found.distances[left].argsort()
    left, theirs = left[order], theirs[order]
    about = {"left_in_radii": [round(value, 3) for value in (found.distances[left] / RADIUS).tolist()]}
    print(json.dumps(about | {"flipped_by_autoattack": theirs.int().tolist()}), flush=True)
    rows = left[theirs]
    for about, one in runs():
        times = flipped(one, model, x[rows], y[rows], found.x_adv[rows], found.distances[rows])
        print(json.dumps(about | {"flips": times}), flush=True)


if __name__ == "__main__":
    main()

"""Passes of an effort on 10,000 images beside those on each thousand of them; rows as JSON.

    python docs/results/step_cost/ten_times_the_images.py auto mnist_mlp_lpd_0.1.pth data/mnist

A network of others on the test images of MNIST, W_inf, l_inf, radius 0.1. A row has the images' first position, their
number, the share of them that is left, passes an image (a forward and a backward pass are one), and seconds.
"""

import argparse
import json
import math
import tempfile
import time

import torch

from wdro_train.attacks import MinimalDistance
from wdro_train.evaluation.array_batches import ArrayBatches
from wdro_train.evaluation.effort import chosen_effort
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.networks import load_arrays, network_trained_elsewhere
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.theory.ball import WassersteinBall
from wdro_train.tools.network_arguments import composed
from wdro_train.utils.pass_counter import PassCounter

RADIUS, IMAGES, PARTS, BATCH_SIZE = 0.1, 10_000, 10, 500


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("effort", choices=["auto", "quick"])
    parser.add_argument("weights")
    parser.add_argument("images", help="the folder of MNIST")
    given = parser.parse_args()
    keys = ["model=own", "model._target_=wdro_train.tools.third_party_networks.mlp", f"model.weights={given.weights}"]
    keys += ["data=mnist", f"data.root={given.images}", "attack.p=inf", "attack.norm=inf", f"attack.delta={RADIUS}"]
    device = torch.device("cpu")
    network = network_trained_elsewhere(composed(keys), device)
    arrays, model = load_arrays(network.config, "test", IMAGES), network.model.eval()
    chosen, ball = chosen_effort(given.effort), WassersteinBall(math.inf, math.inf, RADIUS)
    whole = torch.arange(IMAGES)
    for rows in (whole, *whole.chunk(PARTS)):
        with tempfile.TemporaryDirectory() as folder, PassCounter(model) as passes:
            store = PieceStore(folder, {})
            engine = Engine(model, ArrayBatches(arrays.take(rows), BATCH_SIZE), store, device, 0)
            started = time.perf_counter()
            attack = MinimalDistance(norm=ball.norm, **chosen.search, batch_size=BATCH_SIZE)
            found = chosen.effort(engine, attack, ball)
            seconds = time.perf_counter() - started
            store.close()
        row = {"first": int(rows[0]), "images": len(rows), "left": found.rounds[-1].accuracy}
        print(json.dumps(row | {"passes": passes.pairs / len(rows), "seconds": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    main()

"""What rounds of different kind still find at p < inf after others have been through; rows as JSON.

    python docs/results/distances_effort/late_rounds.py CKPT 345

1,000 test images of Fashion-MNIST, W_2, l_inf, radius 0.1, seed 0. The search goes on as `auto` does for so many passes
an image; then each kind of round, of 60 steps, is run three times on the images that the worst case moves, always from
there. A row has the kind, the passes an image of the set, and by how much each run lowered the accuracy.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.marginal_rounds import WithinReach
from wdro_train.attacks.minimum_norm_rounds import MinimumNorm
from wdro_train.attacks.rounds import AdaptiveRound, AnyRival, FurtherSearch, OneRival, Round
from wdro_train.attacks.starts import AroundTheFlip, AtRandom, AtTheFlip
from wdro_train.config.resolvers import register_resolvers
from wdro_train.evaluation.array_batches import ArrayBatches
from wdro_train.evaluation.distances import FoundDistances, find_distances, go_on
from wdro_train.evaluation.effort import still_wanted
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.networks import load_arrays, load_network
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.evaluation.turns import marginal_turns
from wdro_train.theory.ball import WassersteinBall

IMAGES, BATCH_SIZE, BALL, STEPS, RUNS = 1000, 512, WassersteinBall(2, math.inf, 0.1), 60, 3
MARGIN, SOFT = AnyRival("margin"), AnyRival("soft_margin")
KINDS = (
    MinimumNorm("minimum norm, from a random point", AtRandom(), SOFT, STEPS),
    MinimumNorm("minimum norm, from around the flip", AroundTheFlip(), SOFT, STEPS),
    MinimumNorm("minimum norm, 1st rival", AtRandom(), OneRival(0), STEPS),
    MinimumNorm("minimum norm, 2nd rival", AtRandom(), OneRival(1), STEPS),
    MinimumNorm("minimum norm, 3rd rival", AtRandom(), OneRival(2), STEPS),
    Round("momentum steps from the flip", AtTheFlip(), MARGIN, STEPS, 1.0),
    Round("large momentum steps from the flip", AtTheFlip(), MARGIN, STEPS, 3.0),
    Round("momentum steps from around the flip", AroundTheFlip(), MARGIN, STEPS, 1.0),
    Round("momentum steps from a random point", AtRandom(), MARGIN, STEPS, 1.0),
    AdaptiveRound("Auto-PGD from around the flip", AroundTheFlip(), MARGIN, STEPS),
    AdaptiveRound("Auto-PGD from a random point", AtRandom(), MARGIN, STEPS),
)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("passes", type=float, help="passes an image after which no other round of `auto` begins")
    given = parser.parse_args()
    register_resolvers()
    device = torch.device("cpu")
    network = load_network(given.checkpoint, device=device, allowed=frozenset())
    batches = ArrayBatches(load_arrays(network.config, "test", IMAGES), BATCH_SIZE)
    attack = MinimalDistance(norm=BALL.norm, batch_size=BATCH_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        store = PieceStore(folder, {})
        engine = Engine(network.model.eval(), batches, store, device, 0)

        def after(found: FoundDistances, kind: FurtherSearch) -> FoundDistances:
            wanted = still_wanted(found.curve, BALL)
            return go_on(engine, attack, found, kind.of_set(wanted, torch.from_numpy(found.distances)), wanted)

        found = find_distances(engine, attack)
        for kind in (kind for turn in marginal_turns(30) for kind in turn):
            if found.passes > given.passes:
                break
            found = after(found, kind)
        first = found.curve.accuracy(BALL.delta, BALL.p)
        about = {"network": Path(given.checkpoint).parent.parent.name}
        print(json.dumps(about | {"passes": found.passes, "accuracy": first}), flush=True)
        for kind in KINDS:
            now, lowered = found, []
            for _ in range(RUNS):
                before = now.curve.accuracy(BALL.delta, BALL.p)
                now = after(now, WithinReach(kind.kind, kind))
                lowered.append(before - now.curve.accuracy(BALL.delta, BALL.p))
            print(json.dumps({"kind": kind.kind, "passes": now.passes - found.passes, "lowered": lowered}), flush=True)
        store.close()


if __name__ == "__main__":
    main()

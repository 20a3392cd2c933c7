"""The distance of every image of a set to its nearest misclassified point, found by the minimum-norm attack.

One vector of distances gives the worst-case accuracy for every radius and every order (theory, section 5).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.attacks.rounds import FurtherSearch, Wanted
from wdro_train.evaluation.engine import Engine, Place, Stage
from wdro_train.evaluation.piece_store import Arrays
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.pass_counter import PassCounter


class RoundResult(NamedTuple):
    """How far the search had come after a round.

    Attributes:
        kind: What was done in the round.
        passes: Passes an image of the set so far: a forward and a backward pass are one, a forward pass alone is half.
        asked: Number of images that were searched.
        improved: Number of images whose distance fell.
        accuracy: Worst-case accuracy in the ball of the threat after the round; NaN without a threat.
    """

    kind: str
    passes: float
    asked: int
    improved: int
    accuracy: float


@dataclass(frozen=True, eq=False)
class FoundDistances:
    """What the minimum-norm attack found on a whole set.

    Attributes:
        distances: ||x' - x||_s to the nearest flip that was found, shape [N], float64: 0 for misclassified images,
            inf where no flip was found.
        labels: The label of each image, shape [N].
        correct: Whether the clean image is classified correctly, shape [N].
        rivals: The class that each image was flipped to, shape [N]; its label where it was not flipped.
        zero_gradients: Number of correct images whose first gradient vanished.
        nonfinite_gradients: Number of (image, step) pairs whose gradient was not finite.
        stage: The last stage of the search, from whose pieces `flipped_points` reads the flips; None if no pieces of
            it are kept.
        rounds: How far the search had come after each round.
        capped: Whether the search ended because its budget of passes was used up.
    """

    distances: NDArray[np.float64]
    labels: NDArray[np.int64]
    correct: NDArray[np.bool_]
    rivals: NDArray[np.int64]
    zero_gradients: int
    nonfinite_gradients: int
    stage: Stage | None = None
    rounds: tuple[RoundResult, ...] = ()
    capped: bool = False

    @property
    def curve(self) -> RobustnessCurve:
        """A_delta for all delta and p, an upper bound on the exact one."""
        return RobustnessCurve(self.distances)

    @property
    def passes(self) -> float:
        """Passes an image of the whole search."""
        return self.rounds[-1].passes if self.rounds else 0.0


def distance_stage(engine: Engine, attack: MinimalDistance) -> Stage:
    """The stage that runs the minimum-norm attack on every batch.

    Its pieces hold the distances and, as `points`, the flipped images, whose last axis is the batch.

    Args:
        engine: Gives the network.
        attack: Finds the distances.
    """

    def work(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        with PassCounter(engine.model) as passes:
            found = attack(engine.model, x, y, generator=generator, fast=engine.fast)
        rivals = _rivals(engine, found.x_adv, y, attack.effort.batch_size)
        return {
            "distances": found.distances.cpu().numpy(),
            "labels": y.cpu().numpy(),
            "correct": found.clean_correct.cpu().numpy(),
            "rivals": torch.where(found.distances.isfinite(), rivals, y).cpu().numpy(),
            "counts": np.asarray([found.zero_gradients, found.nonfinite_gradients])[:, None],
            "counted": np.asarray([passes.forward, passes.backward])[:, None],
            "points": np.moveaxis(found.x_adv.cpu().numpy(), 0, -1),
        }

    return Stage("distances", attack, work)


def round_stage(
    engine: Engine, attack: MinimalDistance, before: Stage, one: FurtherSearch, wanted: Wanted, number: int
) -> Stage:
    """The stage of a further round, which goes on from the flips of the stage before it.

    Its pieces hold the distances and rivals of all images, and of the images whose distance fell their positions in
    the batch, as `rows`, and their flips, as `points`.

    Args:
        engine: Gives the network.
        attack: Gives norm and batch size.
        before: The stage before.
        one: What to do.
        wanted: Which flips would matter.
        number: Of the round; random starts differ from round to round.
    """

    def work(x: Tensor, y: Tensor, generator: torch.Generator, place: Place) -> Arrays:
        piece = engine.piece(before, place, x, y, ("distances", "rivals"))
        points = flipped_points(engine, before, place, x, y)
        seeds = np.random.SeedSequence([generator.initial_seed(), number])
        generator = torch.Generator(x.device).manual_seed(int(seeds.generate_state(1, np.uint32)[0]))
        before_it = torch.from_numpy(piece["distances"]).to(x.device)
        known = NearestFlips(attack.ground, engine.model, x.float(), y, attack.effort.batch_size)
        known.points, known.distances = points.to(x.device), before_it
        with PassCounter(engine.model) as passes, attack_mode(engine.model):
            one(known, wanted, generator=generator, fast=engine.fast)
        flips, distances = known.points, known.distances
        rows = (distances < before_it).nonzero().squeeze(1)
        rivals = torch.from_numpy(piece["rivals"]).to(y)
        if len(rows):
            rivals[rows] = _rivals(engine, flips[rows], y[rows], attack.effort.batch_size)
        return {
            "distances": distances.cpu().numpy(),
            "rivals": rivals.cpu().numpy(),
            "asked": one.asked(wanted, before_it).cpu().numpy(),
            "counted": np.asarray([passes.forward, passes.backward])[:, None],
            "rows": rows.cpu().numpy(),
            "points": np.moveaxis(flips[rows].cpu().numpy(), 0, -1),
        }

    return Stage(f"distances_{number}", (attack, one, wanted, number, before.key), work, before)


def flipped_points(engine: Engine, stage: Stage, place: Place, x: Tensor, y: Tensor) -> Tensor:
    """The nearest flips that the search had found of a batch after one of its stages.

    Args:
        engine: The set and the network.
        stage: Of the search.
        place: Where the batch is.
        x: Its images.
        y: Its labels.

    Returns:
        Shape of the images, float32; the images themselves where there is none.
    """
    if stage.before is None:
        return torch.from_numpy(engine.piece(stage, place, x, y, ("points",))["points"]).movedim(-1, 0).contiguous()
    points = flipped_points(engine, stage.before, place, x, y)
    nearer = engine.piece(stage, place, x, y, ("rows", "points"))
    points[torch.from_numpy(nearer["rows"])] = torch.from_numpy(nearer["points"]).movedim(-1, 0)
    return points


def find_distances(engine: Engine, attack: MinimalDistance) -> FoundDistances:
    """The distances of the whole set; the flipped images stay in the store (see `distance_stage`).

    Args:
        engine: The set and the network.
        attack: Finds the distances.
    """
    stage = distance_stage(engine, attack)
    joined = engine.run(stage, ("distances", "labels", "correct", "rivals", "counts", "counted"))
    zero, nonfinite = (int(row.sum()) for row in joined.pop("counts"))
    images = len(joined["labels"])
    passes = float(joined.pop("counted").sum()) / 2 / images
    asked = int(joined["correct"].sum())
    first = RoundResult("minimum norm", passes, asked, int((joined["distances"] > 0).sum()), math.nan)
    return FoundDistances(
        distances=joined["distances"],
        labels=joined["labels"],
        correct=joined["correct"],
        rivals=joined["rivals"],
        zero_gradients=zero,
        nonfinite_gradients=nonfinite,
        stage=stage,
        rounds=(first,),
    )


def go_on(
    engine: Engine, attack: MinimalDistance, found: FoundDistances, one: FurtherSearch, wanted: Wanted
) -> FoundDistances:
    """The distances after one more round; no distance grows.

    Args:
        engine: The set and the network.
        attack: Gives norm and batch size.
        found: What was found before.
        one: What to do.
        wanted: Which flips would matter.
    """
    before = found.stage or distance_stage(engine, attack)
    stage = round_stage(engine, attack, before, one, wanted, len(found.rounds))
    joined = engine.run(stage, ("distances", "rivals", "asked", "counted"))
    distances = np.asarray(joined["distances"], dtype=np.float64)
    passes = found.passes + float(joined["counted"].sum()) / 2 / len(distances)
    improved = int((distances < found.distances).sum())
    done = RoundResult(one.kind, passes, int(joined["asked"].sum()), improved, math.nan)
    rounds = (*found.rounds, done)
    return replace(found, distances=distances, rivals=joined["rivals"], stage=stage, rounds=rounds)


def _rivals(engine: Engine, points: Tensor, y: Tensor, batch_size: int | None) -> Tensor:
    """The strongest class beside the label, shape [N]; in a tie the label would come first."""
    with attack_mode(engine.model), torch.no_grad():
        logits = forward(engine.model, points, batch_size)
    return logits.scatter(1, y[:, None], -math.inf).argmax(1)

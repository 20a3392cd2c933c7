"""Judge the runs of a study alike: robustness curves, accuracies, and what a training step of each costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.data import ImageSet
from wdro_train.evaluation import robustness_curve
from wdro_train.evaluation.array_batches import ArrayBatches
from wdro_train.evaluation.autoattack import autoattack
from wdro_train.evaluation.digests import batch_digest, file_digest
from wdro_train.evaluation.networks import JudgedNetwork, load_arrays
from wdro_train.evaluation.trained import data_name
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.tools.accuracies import Accuracies, Curves, accuracies, curves, radii_of_curves
from wdro_train.tools.certified_runs import CertifiedPart
from wdro_train.tools.compare_attacks import measure
from wdro_train.tools.loading import BATCH_SIZE, on_device
from wdro_train.tools.step_cost import count
from wdro_train.tools.study_files import read_metrics
from wdro_train.training.adversary import Attacker
from wdro_train.training.callbacks import AdversarialWeightPerturbation, DistributionalAdversary
from wdro_train.training.checkpoint import read_checkpoint

_COUNTED = 512  # training images on which a step's passes are counted, which are averaged over images; four batches


class AutoAttackCheck(TypedDict):
    """AutoAttack against the distances on the same images, at p = inf."""

    images: int
    delta: float
    clean: float
    autoattack: float
    minimal_distance: float


class EffortCheck(TypedDict):
    """Accuracies with the usual effort, and with more."""

    images: int
    clean: float
    usual: Accuracies
    more: Accuracies


class JudgedRun(TypedDict):
    """One run, as `runs/<method>_<seed>.json` holds it."""

    method: str
    seed: int
    command: str
    trained_for: dict[str, object]
    epochs: int
    images: int
    limit: int | None
    norm: str
    clean: float
    deltas: list[float]
    curves: Curves
    accuracies: Accuracies
    passes: float
    checkpoint: NotRequired[str]  # its digest, which results of earlier versions lack
    data: NotRequired[str]  # from `data_name`, which they lack, too
    test_images: NotRequired[str]  # from `images_digest`, as well
    certified: NotRequired[CertifiedPart]
    check: NotRequired[AutoAttackCheck]
    effort: NotRequired[EffortCheck]


def attacked_curve(network: JudgedNetwork, norm: float, limit: int | None) -> RobustnessCurve:
    """The curve of a run on its test set, by the minimum-norm attack.

    Args:
        network: The network of the run.
        norm: Ground norm.
        limit: First so many images only; None for all.
    """
    arrays = load_arrays(network.config, "test", limit)
    return robustness_curve(network.model, ArrayBatches(arrays, BATCH_SIZE), norm=norm)


def judge_run(
    network: JudgedNetwork,
    curve: RobustnessCurve,
    norm: float,
    deltas: Sequence[float],
    limit: int | None,
    test_images: str,
) -> JudgedRun:
    """Judge one run on its test set: curves, accuracies, and what a training step costs.

    Args:
        network: The network of the run, from `checkpoints/best.ckpt` in its folder.
        curve: From `attacked_curve`.
        norm: Ground norm.
        deltas: Radii of the table.
        limit: First so many images only; None for all.
        test_images: Their digest, from `images_digest`.
    """
    run = network.path.parent.parent
    method, _, seed = run.name.rpartition("_")
    trained = read_metrics(run)
    return {
        "method": method,
        "seed": int(seed),
        "command": trained["command"],
        "trained_for": trained["threat"],
        "epochs": trained["epochs"],
        "images": len(curve),
        "limit": limit,
        "norm": f"{norm:g}",
        "clean": curve.clean_accuracy,
        "deltas": radii_of_curves(deltas),
        "curves": curves(curve, deltas),
        "accuracies": accuracies(curve, deltas),
        "passes": passes(network, load_arrays(network.config, "train", _COUNTED)),
        "checkpoint": file_digest(network.path),
        "data": data_name(network.config["data"]),
        "test_images": test_images,
    }


def images_digest(network: JudgedNetwork, limit: int | None) -> str:
    """SHA-256 of all labels and of the first batch of a test set, by which it is told from others of its name and size.

    Args:
        network: The network of the run.
        limit: First so many images only; None for all. No more than a batch of them is decoded.
    """
    arrays = load_arrays(network.config, "test", limit)
    first, _ = next(iter(ArrayBatches(arrays, BATCH_SIZE)))
    return batch_digest(first, arrays.labels)


def passes(network: JudgedNetwork, arrays: ImageSet) -> float:
    """The number of pairs of a forward and a backward pass for each image of a training step, counted at the network.

    Perturbing the weights takes the passes of the objective once more.

    Args:
        network: The trained network and its configuration.
        arrays: Images to count on.
    """
    x, y = on_device(arrays, network)
    attack, objective = network.construct("attack"), network.construct("objective")
    for key, state in read_checkpoint(network.path).get("callbacks", {}).items():
        if key.startswith(DistributionalAdversary.__name__):
            Attacker(attack).load_state_dict(state)
    pairs = count(network.model, x, y, attack if objective.needs_adversary else None, objective)
    perturbed = any(
        str(node.get("_target_", "")).endswith(AdversarialWeightPerturbation.__name__)
        for node in network.config["callbacks"].values()
        if isinstance(node, dict)
    )
    return pairs + (count(network.model, x, y, None, objective) if perturbed else 0.0)


def check(network: JudgedNetwork, norm: float, delta: float, limit: int) -> AutoAttackCheck:
    """Hold AutoAttack, Square included, against the distances on the same images, at p = inf.

    Args:
        network: The network of the run.
        norm: Ground norm.
        delta: Radius.
        limit: First so many images.
    """
    arrays = load_arrays(network.config, "test", limit)
    ball = WassersteinBall(math.inf, norm, delta)
    x, y = on_device(arrays, network)
    with attack_mode(network.model), torch.no_grad():
        clean = correct(forward(network.model, x), y).double().mean().item()
    left = 0.0
    if clean:  # of a training that collapsed, no image may be right
        found = measure("AutoAttack", lambda m, a, b: autoattack(m, a, b, ball), network.model, x, y, ball)
        left = RobustnessCurve(found.distances).accuracy(delta, math.inf)
    ours = robustness_curve(network.model, ArrayBatches(arrays, BATCH_SIZE), norm=norm)
    return {
        "images": len(y),
        "delta": delta,
        "clean": clean,
        "autoattack": left,
        "minimal_distance": ours.accuracy(delta, math.inf),
    }


def effort(network: JudgedNetwork, norm: float, deltas: Sequence[float], limit: int) -> EffortCheck:
    """Judge again with about eight times the gradient steps: 50 steps, 2 restarts and 3 target classes.

    Args:
        network: The network of the run.
        norm: Ground norm.
        deltas: Radii of the table.
        limit: First so many images.
    """
    batches = ArrayBatches(load_arrays(network.config, "test", limit), BATCH_SIZE)
    weak = robustness_curve(network.model, batches, norm=norm)
    strong = robustness_curve(network.model, batches, norm=norm, steps=50, restarts=2, targets=3)
    best = RobustnessCurve.pool([weak.distances, strong.distances])
    return {
        "images": len(best),
        "clean": best.clean_accuracy,
        "usual": accuracies(weak, deltas),
        "more": accuracies(best, deltas),
    }

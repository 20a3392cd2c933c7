"""The whole-set engine: streams a dataset in batches and keeps what each batch leaves.

Memory holds one batch and a few numbers an image. Batches are dealt out over the ranks; each rank writes what it
finishes to a store that all of them read, so the result does not depend on their number, and a killed run goes on
from its last finished batch.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.network_check import check_network
from wdro_train.attacks.w_fgsm import push_forward
from wdro_train.evaluation import warning_signs
from wdro_train.evaluation.identity import batch_digest, describe, digest, identity
from wdro_train.evaluation.piece_store import Arrays, PieceStore, concatenate
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.box import free_gradient
from wdro_train.theory.ground_norm import GroundNorm, conjugate
from wdro_train.theory.losses import correct, resolve_loss
from wdro_train.theory.power_mean import moment, power_mean
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.contract import check_batch, unpack
from wdro_train.utils.distributed import LocalReducer, Reducer, default_reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number

Batches = Iterable[tuple[Tensor, Tensor]]
_LOOKED_AT = 16  # images of the first batch
Work = Callable[[Tensor, Tensor, torch.Generator], Arrays]


@dataclass(frozen=True)
class Stage:
    """One pass of work over a set, whose results are kept batch by batch.

    Attributes:
        name: For the progress bar and the store's folders.
        settings: Everything that the work depends on beside the network and its batch, such as the attack; what it is
            made of tells its pieces apart from those of other settings.
        work: Takes images, labels and a generator seeded for the batch; returns per-image arrays, last axis B.
    """

    name: str
    settings: Any
    work: Work

    @cached_property
    def key(self) -> str:
        """The name of its folder in the store."""
        return stage_key(self.name, self.settings)


def stage_key(name: str, settings: Any) -> str:
    """The folder of a stage in the store: its name, and a digest of its settings.

    Args:
        name: Of the stage.
        settings: See `Stage`.
    """
    return f"{name}-{digest(describe(settings))[:32]}"


class Mark(NamedTuple):
    """What a batch of the set is known by.

    Attributes:
        digest: Of its images and labels.
        size: Number of its images.
    """

    digest: str
    size: int


@dataclass
class Engine:
    """Runs work over all batches of a set, once each.

    Attributes:
        model: Maps images in [0, 1] to logits.
        batches: Batches in an order that does not change; iterated once a stage.
        store: Where finished batches are kept.
        device: Where the model is.
        seed: Seeds the generator of each batch.
        reducer: Gives rank and number of ranks.
        progress: Called as (stage, batches done).
    """

    model: nn.Module
    batches: Batches
    store: PieceStore
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    reducer: Reducer = field(default_factory=LocalReducer)
    progress: Callable[[str, int], None] = lambda stage, done: None
    _marks: list[Mark] | None = field(default=None, init=False, repr=False)

    def first(self, batches: int) -> Engine:
        """The same engine over the first so many batches."""
        return replace(self, batches=list(islice(self.batches, batches)))

    def run(self, stage: Stage, names: tuple[str, ...]) -> Arrays:
        """Do a stage: every batch that is not in the store yet.

        Args:
            stage: What to do.
            names: Which of its arrays are wanted.

        Returns:
            These arrays of the whole set, batch after batch along the last axis.

        Raises:
            UserError: There are no batches, or they are not those of an earlier stage.
        """
        marks: list[Mark] = []
        for index, (x, y) in enumerate(self.batches):
            marks.append(Mark(batch_digest(x, y), len(y)))
            mine = index % self.reducer.world_size == self.reducer.rank
            if mine and self.store.load(stage.key, index, marks[-1].digest) is None:
                self._do(stage, index, marks[-1], x, y)
            self.progress(stage.name, index + 1)
        self._same_set(marks)
        self.wait()
        return self._join(stage, marks, names)

    def piece(self, stage: Stage, index: int, x: Tensor, y: Tensor, names: tuple[str, ...]) -> Arrays:
        """What a stage leaves of one batch: from the store, or made again if it is not there.

        Args:
            stage: What was done.
            index: Number of the batch.
            x: Its images.
            y: Its labels.
            names: Which of its arrays are wanted.
        """
        mark = Mark(batch_digest(x, y), len(y))
        found = self.store.load(stage.key, index, mark.digest, names)
        return self._do(stage, index, mark, x, y) if found is None else found

    def survey(self) -> list[Mark]:
        """What each batch of the set is known by, from one pass over it.

        Raises:
            UserError: See `run`.
        """
        marks = [Mark(batch_digest(x, y), len(y)) for x, y in self.batches]
        self._same_set(marks)
        return marks

    def agree(self, flag: bool) -> bool:
        """Whether a flag is raised on any rank; all ranks meet here."""
        return bool(self.reducer.gather(torch.full((1,), float(flag), device=self.device)).any())

    def wait(self) -> None:
        """Until all ranks are here."""
        self.agree(False)

    def _do(self, stage: Stage, index: int, mark: Mark, x: Tensor, y: Tensor) -> Arrays:
        key = np.random.SeedSequence([self.seed, index]).generate_state(1, np.uint32)
        generator = torch.Generator(self.device).manual_seed(int(key[0]))
        arrays = stage.work(x.to(self.device), y.to(self.device), generator)
        self.store.save(stage.key, index, mark.digest, arrays)
        return arrays

    def _join(self, stage: Stage, marks: list[Mark], names: tuple[str, ...]) -> Arrays:
        found = [self.store.load(stage.key, index, mark.digest, names) for index, mark in enumerate(marks)]
        parts = {index: part for index, part in enumerate(found) if part is not None}
        if len(parts) < len(marks):  # something has happened to a piece since
            for index, (x, y) in enumerate(self.batches):
                if index not in parts:
                    parts[index] = self._do(stage, index, marks[index], x, y)
        return concatenate([parts[index] for index in range(len(marks))], names)

    def _same_set(self, marks: list[Mark]) -> None:
        """Numbers of one image meet in several stages, so all stages must see the same images in the same order."""
        if not marks:
            raise UserError("there are no batches, so there is nothing to judge; give at least one image")
        if self._marks is not None and marks != self._marks:
            raise UserError(
                f"the {len(marks)} batches are not those of the pass before; give images in a fixed order, unshuffled "
                "and without random augmentation, and do not change them meanwhile"
            )
        self._marks = marks


class FoundDistances(NamedTuple):
    """Whole-set distances.

    Attributes:
        distances: Shape [N], float64; see `wdro_train.attacks.minimal_distance.Distances`.
        labels: Shape [N].
        correct: Clean-correct images, shape [N].
        rivals: Class each image was flipped to, shape [N]; the label where it was not.
        zero_gradients: Correct images whose first gradient vanished.
        nonfinite_gradients: (Image, step) pairs whose gradient was not finite.
    """

    distances: NDArray[np.float64]
    labels: NDArray[np.int64]
    correct: NDArray[np.bool_]
    rivals: NDArray[np.int64]
    zero_gradients: int
    nonfinite_gradients: int

    @property
    def curve(self) -> RobustnessCurve:
        """A_delta for all delta and p."""
        return RobustnessCurve(self.distances)


def distance_stage(engine: Engine, attack: MinimalDistance) -> Stage:
    """The minimum-norm attack on a set, which leaves distances and, as `points`, the flipped images.

    Args:
        engine: The set and the network.
        attack: Finds the distances.
    """

    def work(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        found = attack(engine.model, x, y, generator=generator)
        with attack_mode(engine.model), torch.no_grad():
            logits = forward(engine.model, found.x_adv, attack.batch_size)
        others = logits.scatter(1, y[:, None], -math.inf).argmax(1)  # in a tie the label would come first
        rivals = torch.where(found.distances.isfinite(), others, y)
        return {
            "distances": found.distances.cpu().numpy(),
            "labels": y.cpu().numpy(),
            "correct": found.clean_correct.cpu().numpy(),
            "rivals": rivals.cpu().numpy(),
            "counts": np.asarray([found.zero_gradients, found.nonfinite_gradients])[:, None],
            "points": np.moveaxis(found.x_adv.cpu().numpy(), 0, -1),
        }

    return Stage("distances", attack, work)


def find_distances(engine: Engine, attack: MinimalDistance) -> FoundDistances:
    """Distances of the whole set; see `distance_stage` for what else is kept in the store."""
    joined = engine.run(distance_stage(engine, attack), ("distances", "labels", "correct", "rivals", "counts"))
    zero, nonfinite = (int(row.sum()) for row in joined.pop("counts"))
    return FoundDistances(**joined, zero_gradients=zero, nonfinite_gradients=nonfinite)


@dataclass(frozen=True)
class FirstOrderGrid:
    """The poster's whole-set quantities of W-FGSM for one loss, on a grid of orders and radii.

    Attributes:
        v0: V(0).
        w0: W(0), NaN if nothing is misclassified.
        clean_acc: A.
        upsilon: Upsilon for each order.
        v_q: E_{Q_delta}[J] for each (order, radius).
        fgsm_acc: Q_delta(S) for each (order, radius).
        spent: Budget spent for each (order, radius).
    """

    v0: float
    w0: float
    clean_acc: float
    upsilon: dict[float, float]
    v_q: dict[tuple[float, float], float]
    fgsm_acc: dict[tuple[float, float], float]
    spent: dict[tuple[float, float], float]


def first_order_grid(
    engine: Engine, *, norm: float, loss: str, orders: list[float], deltas: list[float], box: bool = True
) -> FirstOrderGrid:
    """W-FGSM of the whole set on a grid: one gradient pass for Upsilon, one more and a forward pass a grid point.

    Args:
        engine: The set and the network.
        norm: Ground norm.
        loss: `ce`, `dlr` or `redlr`.
        orders: Wasserstein orders p > 1.
        deltas: Radii.
        box: Free gradient and full spending in [0, 1]^n; False for the poster's formula.
    """
    value = resolve_loss(loss)

    ground = GroundNorm(norm)

    def gradient(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with attack_mode(engine.model):
            found = input_gradient(engine.model, x, y, value)
        slope = free_gradient(found.gradient, x) if box else found.gradient
        return found.losses, correct(found.logits, y), slope

    def slopes(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        losses, right, slope = gradient(x, y)
        return {
            "dual_norms": ground.dual_norms(slope).cpu().numpy(),
            "losses": losses.double().cpu().numpy(),
            "right": right.cpu().numpy(),
        }

    settings = {"norm": norm, "loss": value, "box": box}
    clean = engine.run(Stage(f"slopes_{loss}", settings, slopes), ("dual_norms", "losses", "right"))
    duals = torch.from_numpy(clean["dual_norms"])
    points = [(p, delta) for p in orders for delta in deltas]
    balls = [WassersteinBall(p, norm, delta) for p, delta in points]
    totals = {p: moment(duals, None, conjugate(p)) for p in orders}

    def moved(x: Tensor, y: Tensor, generator: torch.Generator) -> Arrays:
        _, _, slope = gradient(x, y)
        dual_norms = ground.dual_norms(slope)
        losses, right, distances = [], [], []
        for ball in balls:
            upsilon = power_mean(totals[ball.p], ball.q).to(x.device)
            x_adv = push_forward(ball, x, slope, dual_norms, upsilon, box=box)
            with attack_mode(engine.model), torch.no_grad():
                logits = forward(engine.model, x_adv)
            losses.append(value(logits, y).double())
            right.append(correct(logits, y))
            distances.append(ground.distances(x_adv - x))
        return {
            "losses": torch.stack(losses).cpu().numpy(),
            "right": torch.stack(right).cpu().numpy(),
            "distances": torch.stack(distances).cpu().numpy(),
        }

    # Upsilon is the whole set's, so a batch's images move differently if another batch changes.
    settings |= {"points": points, "totals": totals}
    joined = engine.run(Stage(f"grid_{loss}", settings, moved), ("losses", "right", "distances"))
    wrong = ~clean["right"]
    spent = {
        point: float(ball.spent(torch.from_numpy(joined["distances"][k])))
        for k, (point, ball) in enumerate(zip(points, balls, strict=True))
    }
    return FirstOrderGrid(
        v0=float(clean["losses"].mean()),
        w0=float(clean["losses"][wrong].mean()) if wrong.any() else float("nan"),
        clean_acc=float(clean["right"].mean()),
        upsilon={p: float(power_mean(totals[p], conjugate(p))) for p in orders},
        v_q={point: float(joined["losses"][k].mean()) for k, point in enumerate(points)},
        fgsm_acc={point: float(joined["right"][k].mean()) for k, point in enumerate(points)},
        spent=spent,
    )


def robustness_curve(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    norm: float | str,
    steps: int = 30,
    restarts: int = 1,
    targets: int = 0,
    device: torch.device | str | None = None,
    seed: int = 0,
    store: str | Path | None = None,
) -> RobustnessCurve:
    """Worst-case accuracy of a network for every radius and every order (an attack's upper bound).

    The network and the first batch are looked at before any work (see `wdro_train.utils.contract`). Signs that the
    attack was weak rather than the network strong are warnings of Python, with the sentences that `evaluate.py` prints.

    Args:
        model: Maps images in [0, 1] to logits (normalisation inside).
        batches: Images [B, C, H, W] in [0, 1] with labels [B], in fixed order, such as an unshuffled `DataLoader`;
            further fields are left out, and dictionaries are unpacked.
        norm: Ground norm: 1, 2 or inf.
        steps: Gradient steps of the minimum-norm attack; see `MinimalDistance`.
        restarts: Of the attack.
        targets: Of the attack.
        device: Where the model is; by default where its first parameter is.
        seed: Seeds random starts.
        store: Folder in which to keep finished batches, so that a killed call goes on, and another call with the same
            network, code, settings and images gives the same at once; None keeps nothing.
    """
    attack = MinimalDistance(norm=parse_number(norm, "norm"), steps=steps, restarts=restarts, targets=targets)
    place = torch.device(device if device is not None else next((p.device for p in model.parameters()), "cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        key = {} if store is None else identity(model, seed=seed, device=place)
        pieces = PieceStore(scratch if store is None else store, key)
        try:
            looked = _LookedAt(model, batches, place)
            engine = Engine(model, looked, pieces, place, seed, default_reducer())
            found = find_distances(engine, attack)
        finally:
            pieces.close()
    alarms = [
        warning_signs.zero_gradients(found),
        warning_signs.nonfinite_gradients(found),
        warning_signs.never_flipped(found),
        looked.alarm,
    ]
    for alarm in alarms:
        if alarm is not None and engine.reducer.rank == 0:
            warnings.warn(alarm["text"], stacklevel=2)
    return found.curve


class _LookedAt:
    """Checked batches of a loader, and what the first one tells about the network.

    The look is part of the pass over the set, so that a loader which can be iterated only once loses nothing.
    """

    def __init__(self, model: nn.Module, batches: Iterable[Any], device: torch.device) -> None:
        self.model, self.batches, self.device = model, batches, device
        self.alarm: warning_signs.Warning_ | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        empty = True
        for batch in self.batches:
            x, y, _ = check_batch(*unpack(batch))
            if empty:
                some = x[:_LOOKED_AT].to(self.device)
                check_network(self.model, some, y[: len(some)].to(self.device))
                self.alarm = warning_signs.randomness(self.model, some.float())
            empty = False
            yield x, y
        if empty:
            raise UserError("there is no batch to judge the network on; give a loader with images")

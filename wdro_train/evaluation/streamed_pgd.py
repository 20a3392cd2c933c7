"""W-PGD over a set that does not fit into memory: displacements and gradients lie in memory-mapped files.

The formulas are those of `wdro_train.attacks.ascent`, which `WPGD` uses on a batch; here they are applied to one batch
of the set after the other. A step takes one gradient pass over the set, in which the projection of the step before is
finished on the way, and one pass without the network for the ascent.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wdro_train.attacks import WPGD
from wdro_train.attacks.ascent import slope_in_box, upsilon_in_scope
from wdro_train.attacks.gradient import forward, input_gradient
from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.selection import is_better_iterate
from wdro_train.theory.box import move
from wdro_train.theory.losses import correct, resolve_loss
from wdro_train.theory.power_mean import merge, moment
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.files import cannot_write


class StreamedResult(NamedTuple):
    """What W-PGD did to this rank's images.

    Attributes:
        distances: Displacement norms of the iterate of lowest accuracy, shape [n], float64.
        robust: Images it leaves correct, shape [n].
        accuracy: Accuracy over all ranks.
        max_mean_loss: Largest mean loss over the iterates and all ranks.
    """

    distances: NDArray[np.float64]
    robust: NDArray[np.bool_]
    accuracy: float
    max_mean_loss: float


def streamed_pgd(
    attack: WPGD,
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    reducer: Reducer,
    device: torch.device,
    folder: str | Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> StreamedResult:
    """Run W-PGD from the clean images on all batches as one distribution.

    Args:
        attack: Gives ball, loss, steps and box. The start is clean and the iterate of lowest accuracy is kept,
            whatever the attack's own `random_start` and `keep` say.
        model: Maps images in [0, 1] to logits.
        batches: This rank's images and labels; iterated twice a step, always in the same order.
        reducer: Joins the ranks.
        device: The device of the model.
        folder: Where the files go; None for the system's temporary folder. The files have no names, so that nothing
            is left of them however the process ends.
        progress: Called with the number of steps done.
    """
    run = _Run(attack, model, batches, reducer, device, folder)
    for step in range(attack.steps):
        run.look(step, gradient=True)
        run.climb(step)
        progress(step + 1)
    run.look(attack.steps, gradient=False)
    return run.result()


class _Run:
    """The files and the per-image numbers of one run, of this rank's images."""

    def __init__(
        self,
        attack: WPGD,
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        reducer: Reducer,
        device: torch.device,
        folder: str | Path | None,
    ) -> None:
        self.attack, self.model, self.batches, self.reducer, self.device = attack, model, batches, reducer, device
        self.ball, self.rule, self.loss = attack.ball, attack.rule, resolve_loss(attack.loss)
        sizes = [tuple(x.shape) for x, _ in batches]
        self.n = sum(size[0] for size in sizes)
        shape = (self.n, *(sizes[0][1:] if sizes else ()))  # a rank may have no batch, and takes part all the same
        self.u, self.slopes = (_file_array(shape, folder) for _ in range(2))
        self.distances = torch.zeros(self.n, dtype=torch.float64)
        self.dual_norms = torch.zeros(self.n, dtype=torch.float64)
        self.allowed = torch.zeros(self.n, dtype=torch.float64)
        self.upsilon = torch.zeros((), dtype=torch.float64)
        self.fewest = torch.full((), math.inf, dtype=torch.float64)
        self.loss_of_fewest = -self.fewest
        self.max_mean_loss = -math.inf
        self.final: tuple[NDArray[np.float64], NDArray[np.bool_]] | None = None

    def look(self, step: int, gradient: bool) -> None:
        """Finish the projection of the step before, and ask the network for its logits, losses and gradients there."""
        robust = torch.zeros(self.n, dtype=torch.bool)
        spent = torch.zeros(self.n, dtype=torch.float64)
        total_loss, q = 0.0, self.ball.q
        total = torch.zeros(3, dtype=torch.float64)
        for rows, x, y in self._each():
            u = torch.from_numpy(self.u[rows]).to(self.device)
            x_adv = self.rule.project(x, u, self.distances[rows].to(x.device), self.allowed[rows].to(x.device))
            with attack_mode(self.model):
                if gradient:
                    logits, losses, slope, _ = input_gradient(self.model, x_adv, y, self.loss, self.attack.batch_size)
                else:
                    with torch.no_grad():
                        logits = forward(self.model, x_adv, self.attack.batch_size)
                        losses = self.loss(logits, y)
            self.u[rows] = (x_adv - x).cpu().numpy()
            spent[rows] = self.ball.ground.distances(x_adv - x).cpu()
            robust[rows] = correct(logits, y).cpu()
            total_loss += float(losses.double().sum())
            if gradient:
                slope = slope_in_box(slope, x_adv, box=self.attack.box)
                self.slopes[rows] = slope.cpu().numpy()
                self.dual_norms[rows] = self.ball.ground.dual_norms(slope).cpu()
                part = moment(self.dual_norms[rows], None, q)
                total = merge(torch.stack([total, part]), q)
        sums = torch.tensor([float(robust.sum()), total_loss, float(self.n)], dtype=torch.float64)
        right, loss, size = self._gather(sums).sum(0)
        self.max_mean_loss = max(self.max_mean_loss, float(loss / size))
        if is_better_iterate(right, loss, self.fewest, self.loss_of_fewest):
            self.fewest, self.loss_of_fewest = right, loss
            self.accuracy = float(right / size)
            self.final = (spent.numpy().copy(), robust.numpy().copy())
        if gradient:
            self.upsilon = upsilon_in_scope(self._gather(total), q, self.attack.scope, step)

    def climb(self, step: int) -> None:
        """Take the ascent, and find the norms that the projection allows; the next `look` projects."""
        held = self.dual_norms == 0
        p = self.ball.p
        parts = torch.zeros(2, 3, dtype=torch.float64)
        for rows, x, _ in self._each():
            x_adv = move(x, torch.from_numpy(self.u[rows]).to(x.device))
            slope = torch.from_numpy(self.slopes[rows]).to(x.device)
            u, distances = self.rule.ascent(
                x, x_adv, slope, self.dual_norms[rows].to(x.device), self.upsilon.to(x.device)
            )
            self.u[rows], self.distances[rows] = u.cpu().numpy(), distances.cpu()
            here = self.rule.displacement_moments(self.distances[rows], held[rows], None)
            parts = torch.stack([merge(torch.stack([parts[k], here[k]]), p) for k in (0, 1)])
        self.allowed = self.rule.allowed(self.distances, held, self._gather(parts), step)

    def result(self) -> StreamedResult:
        """The iterate of lowest accuracy."""
        assert self.final is not None
        return StreamedResult(*self.final, self.accuracy, self.max_mean_loss)

    def _each(self) -> Iterable[tuple[slice, Tensor, Tensor]]:
        start = 0
        for x, y in self.batches:
            rows = slice(start, start + len(y))
            start += len(y)
            yield rows, x.to(self.device).float(), y.to(self.device)

    def _gather(self, value: Tensor) -> Tensor:
        return self.reducer.gather(value.to(self.device)).cpu()


def _file_array(shape: tuple[int, ...], folder: str | Path | None) -> NDArray[np.float32]:
    """Zeros in a file without a name.

    The space is taken at once: a disk that fills up while the array is used would end the process without a word.
    """
    size = 4 * math.prod(shape)
    if not size:
        return np.zeros(shape, dtype=np.float32)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                file.truncate(size)
            return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
    except OSError as error:
        raise cannot_write(tempfile.gettempdir() if folder is None else folder, error, "store") from error

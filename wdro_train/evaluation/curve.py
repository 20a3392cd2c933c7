"""The robustness curve of any network on any images, in one call."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks import MinimalDistance
from wdro_train.attacks.network_check import PROBED_IMAGES, check_network
from wdro_train.evaluation import warning_signs
from wdro_train.evaluation.distances import find_distances
from wdro_train.evaluation.effort import chosen_effort
from wdro_train.evaluation.engine import Engine
from wdro_train.evaluation.identity import identity
from wdro_train.evaluation.piece_store import PieceStore
from wdro_train.models import Normalize, normalized
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.contract import check_batch, unpack
from wdro_train.utils.distributed import default_reducer
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number


def robustness_curve(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    norm: float | str,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    steps: int = 30,
    restarts: int = 1,
    targets: int = 0,
    threat: WassersteinBall | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    store: str | Path | None = None,
) -> RobustnessCurve:
    """Worst-case accuracy of a network for every radius and every order (an attack's upper bound).

    The network and the first batch are checked before any work (see `wdro_train.utils.contract`). Signs that the
    attack was weak rather than the network strong are warnings of Python, with the sentences that `evaluate.py` prints.

    Args:
        model: Maps images in [0, 1] to logits, or normalised images if `mean` and `std` say how.
        batches: Images [B, C, H, W] in [0, 1] with labels [B], in fixed order, such as an unshuffled `DataLoader`;
            further fields are left out, and dictionaries are unpacked.
        norm: Ground norm: 1, 2 or inf.
        mean: With `std`: the network is shown (x - mean) / std, one number a channel or one for all. The batches stay
            images in [0, 1], in whose units distances are: leave `transforms.Normalize` out of the loader.
        std: The same.
        steps: Gradient steps of the minimum-norm attack; see `MinimalDistance`.
        restarts: Restarts of that attack.
        targets: Target classes of that attack.
        threat: After that attack go on in rounds of further search, as `distances.effort=auto` of `evaluate.py` does,
            until the worst case in this ball no longer moves; the batches are gone through once a round. Its norm is
            `norm`. None for the attack alone.
        device: Where the model is; by default where its first parameter is.
        seed: Seeds the random starts.
        store: Folder in which to keep finished batches, so that a killed call goes on, and another call with the same
            network, code, settings and images gives the same at once; None keeps nothing.

    Raises:
        UserError: The network or the batches are not what they have to be, or only one of `mean` and `std` is given.
    """
    if (mean is None) != (std is None):
        raise UserError(f"mean={mean}, std={std}: give both, or neither for a network that takes images in [0, 1]")
    attack = MinimalDistance(norm=parse_number(norm, "norm"), steps=steps, restarts=restarts, targets=targets)
    if threat is not None and threat.norm != attack.ground.order:
        raise UserError(f"norm={norm} is not that of the threat, {threat.norm:g}; give the same norm twice")
    place = torch.device(device if device is not None else next((p.device for p in model.parameters()), "cpu"))
    channels: int | None = None
    if mean is not None and std is not None:
        channels = Normalize(mean, std).mean.numel()
        wrapped = normalized(model, mean, std)
        wrapped[0].to(place)
        model = wrapped
    with tempfile.TemporaryDirectory() as scratch:
        key = {} if store is None else identity(model, seed=seed, device=place)
        pieces = PieceStore(scratch if store is None else store, key)
        try:
            checked = _CheckedBatches(model, batches, place, channels)
            engine = Engine(model, checked, pieces, place, seed, default_reducer())
            if threat is None:
                found = find_distances(engine, attack)
            else:
                found = chosen_effort("auto").effort(engine, attack, threat)
        finally:
            pieces.close()
    alarms = [
        warning_signs.zero_gradients(found),
        warning_signs.nonfinite_gradients(found),
        warning_signs.never_flipped(found),
        checked.alarm,
    ]
    for alarm in alarms:
        if alarm is not None and engine.reducer.rank == 0:
            warnings.warn(alarm.text, stacklevel=2)
    return found.curve


class _CheckedBatches:
    """The batches of a loader, checked, with a warning if the network answers the first one at random.

    The check is part of the pass over the set, so that a loader which can be iterated only once loses nothing.
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[Any], device: torch.device, channels: int | None = None
    ) -> None:
        self.model, self.batches, self.device, self.channels = model, batches, device, channels
        self.alarm: warning_signs.WarningSign | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        empty = True
        for batch in self.batches:
            x, y, _ = check_batch(*unpack(batch))
            if empty:
                if self.channels not in (None, 1, x.shape[1]):
                    raise UserError(
                        f"mean and std are for {self.channels} channels, but the images have {x.shape[1]}; give one "
                        "number a channel"
                    )
                some = x[:PROBED_IMAGES].to(self.device)
                check_network(self.model, some, y[: len(some)].to(self.device))
                self.alarm = warning_signs.randomness(self.model, some.float())
            empty = False
            yield x, y
        if empty:
            raise UserError("there is no batch to judge the network on; give a loader with images")

"""What an iterative attack returns, out of all the points it has visited.

The 2023 code keeps the iterate of lowest accuracy. In a W_p ball with p < inf that wastes budget: some of it lies on
images that never flip, and others are pushed further than they need to be. The worst case is a knapsack (theory,
section 5), and over the points an attack has visited it is solved by paying for the cheapest misclassified point of
each image, cheapest first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.nearest_flips import NearestFlips
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.ground_norm import DISTANCE_ROUNDING, choose_images
from wdro_train.theory.losses import correct
from wdro_train.utils.distributed import Reducer
from wdro_train.utils.errors import UserError

Keep = Literal["last", "best", "cheapest", "nearest"]

# Halvings of the way from an image to its flip: what is left, 3 % of it, is less than a step of an attack.
_HALVINGS = 5


class Keeper(ABC):
    """Is shown every iterate of an attack, each of them inside the ball, and chooses what the attack returns.

    Attributes:
        logits: Logits of the points chosen so far.
        mean_loss: Largest mean loss over the iterates offered, over the global batch.
    """

    def __init__(self, ball: WassersteinBall, x: Tensor, y: Tensor, weight: Tensor | None, reducer: Reducer) -> None:
        self.ball, self.y, self.reducer = ball, y, reducer
        self.clean = x
        self.weight = torch.ones_like(y, dtype=torch.float64) if weight is None else weight.double()
        self.x_adv = x
        self.logits = torch.empty(0)
        self.mean_loss = torch.full((), -math.inf, dtype=torch.float64, device=x.device)

    @torch.no_grad()
    def offer(self, x_adv: Tensor, logits: Tensor, losses: Tensor) -> None:
        """Show an iterate with its logits [B, m] and losses [B]."""
        robust = correct(logits, self.y)
        sums = torch.stack([(self.weight * robust).sum(), (self.weight * losses.double()).sum(), self.weight.sum()])
        total = self.reducer.gather(sums).sum(0)
        mean_loss = total[1] / total[2]
        better = self._better(x_adv, robust, total[0], mean_loss)
        if self.logits.numel():
            self.x_adv = choose_images(better, x_adv, self.x_adv)
            self.logits = torch.where(better[:, None], logits, self.logits)
        else:
            self.x_adv, self.logits = x_adv, logits
        self.mean_loss = torch.maximum(self.mean_loss, mean_loss)

    @property
    def finished(self) -> Tensor | None:
        """Which images take no more steps, boolean [B]; None if all of them go on."""
        return None

    def hold(self, x_adv: Tensor) -> Tensor:
        """The points from which the next step starts, given the iterate."""
        return x_adv

    def choose(self) -> Tensor:
        """The points to return, shape of the images."""
        return self.x_adv

    @abstractmethod
    def _better(self, x_adv: Tensor, robust: Tensor, number_robust: Tensor, mean_loss: Tensor) -> Tensor:
        """The images whose points are better than those chosen so far, boolean [B].

        Args:
            x_adv: The iterate, shape of the images.
            robust: The images that are correct there, shape [B].
            number_robust: Their weighted number over the global batch, scalar.
            mean_loss: Mean loss over the global batch, scalar.
        """


def is_better_iterate(correct: Tensor, loss: Tensor, fewest: Tensor, loss_of_fewest: Tensor) -> Tensor:
    """Whether an iterate is stronger than the strongest so far: fewer correct images, ties by higher loss.

    Args:
        correct: Number (or weight) of the images that it leaves correct, scalar.
        loss: Its loss, summed or averaged over the same images for all iterates, scalar.
        fewest: `correct` of the strongest so far.
        loss_of_fewest: `loss` of the strongest so far.
    """
    return (correct < fewest) | ((correct == fewest) & (loss > loss_of_fewest))


class BestIterate(Keeper):
    """The iterate with the fewest correct images of the batch, and among those the one of highest mean loss.

    The choice of the 2023 code.
    """

    _fewest: Tensor | None = None

    def _better(self, x_adv: Tensor, robust: Tensor, number_robust: Tensor, mean_loss: Tensor) -> Tensor:
        if self._fewest is None:
            self._fewest, self._loss = number_robust, mean_loss
            return torch.ones_like(robust)
        better = is_better_iterate(number_robust, mean_loss, self._fewest, self._loss)
        self._fewest = torch.where(better, number_robust, self._fewest)
        self._loss = torch.where(better, mean_loss, self._loss)
        return better.expand_as(robust)


class CheapestFlips(Keeper):
    """The cheapest misclassified point of every image; `choose` pays for them, cheapest first.

    Images that never flip, or whose flip the budget does not reach, stay clean and cost nothing. The clean images must
    be offered first.
    """

    _price: Tensor | None = None

    def _better(self, x_adv: Tensor, robust: Tensor, number_robust: Tensor, mean_loss: Tensor) -> Tensor:
        distances = self.ball.ground.distances(x_adv - self.clean)
        price = torch.where(robust, math.inf, distances)
        if self._price is None:
            self._price = price
            return torch.ones_like(robust)
        better = price < self._price
        self._price = torch.where(better, price, self._price)
        return better

    @property
    def finished(self) -> Tensor | None:
        """The images that have flipped, those included that were misclassified to begin with."""
        return None if self._price is None else self._price < math.inf

    def hold(self, x_adv: Tensor) -> Tensor:
        """Images that have flipped stay where their flip was cheapest."""
        assert self.finished is not None
        return choose_images(self.finished, self.x_adv, x_adv)

    def offer(self, x_adv: Tensor, logits: Tensor, losses: Tensor) -> None:
        """Show an iterate; the first one is the clean batch, kept as the fallback."""
        if not self.logits.numel():
            self._clean_logits = logits
        super().offer(x_adv, logits, losses)

    @torch.no_grad()
    def choose(self) -> Tensor:
        """The flips that the budget pays for, and clean images elsewhere."""
        assert self._price is not None
        paid = self._price <= affordable_price(self.ball, self._price, self.weight, self.reducer)
        self.logits = torch.where(paid[:, None], self.logits, self._clean_logits)
        return choose_images(paid, self.x_adv, self.clean)


class BroughtBackFlips(CheapestFlips):
    """The cheapest flips, each brought back to the boundary when it is found, so that it takes less of the budget.

    Steps of an attack overshoot the boundary. Bisection looks at each image that flips in six forward passes, once.

    Args:
        ball: See `Keeper`.
        x: See `Keeper`.
        y: See `Keeper`.
        weight: See `Keeper`.
        reducer: See `Keeper`.
        model: Maps images to logits; flips are offered inside `attack_mode`.
        batch_size: Images per forward pass; None for all at once.
    """

    def __init__(
        self,
        ball: WassersteinBall,
        x: Tensor,
        y: Tensor,
        weight: Tensor | None,
        reducer: Reducer,
        model: nn.Module,
        batch_size: int | None,
    ) -> None:
        super().__init__(ball, x, y, weight, reducer)
        self._model, self._batch_size = model, batch_size

    @torch.no_grad()
    def offer(self, x_adv: Tensor, logits: Tensor, losses: Tensor) -> None:
        """Show an iterate, and bring back the flips that it is the first to find."""
        known = self.finished
        super().offer(x_adv, logits, losses)
        if known is None or self.finished is None:
            return
        rows = (self.finished & ~known).nonzero().squeeze(1)
        if len(rows):
            self._bring_back(rows)

    def _bring_back(self, rows: Tensor) -> None:
        assert self._price is not None
        flips = NearestFlips(self.ball.ground, self._model, self.clean[rows], self.y[rows], self._batch_size)
        flips.points, flips.distances = self.x_adv[rows], self._price[rows]
        flips.pull_back(_HALVINGS)
        # A flip that stays where it is was seen in another batch, in which kernels may have rounded otherwise.
        nearer = flips.distances < self._price[rows]
        logits = forward(self._model, flips.points, self._batch_size).to(self.logits)
        logits = torch.where(nearer[:, None], logits, self.logits[rows])
        self.x_adv = self.x_adv.index_copy(0, rows, flips.points)
        self.logits = self.logits.index_copy(0, rows, logits)
        self._price = self._price.index_copy(0, rows, flips.distances)


def affordable_price(ball: WassersteinBall, prices: Tensor, weight: Tensor, reducer: Reducer) -> Tensor:
    """The largest price up to which all flips together fit into the ball, (1/N) sum price^p <= delta^p.

    Args:
        ball: Gives p and delta.
        prices: Cost of flipping each image, shape [B], inf where it cannot be flipped. All ranks have equal B.
        weight: Shape [B].
        reducer: Joins the ranks.

    Returns:
        Scalar, float64; delta itself at p = inf.
    """
    radius = ball.delta * DISTANCE_ROUNDING
    if math.isinf(ball.p):
        return prices.new_tensor(radius)
    both = reducer.gather(torch.stack([prices, weight])).transpose(0, 1).flatten(1)
    price, order = both[0].sort()
    w = both[1][order]
    relative = (price / max(radius, torch.finfo(torch.float64).tiny)).pow(ball.p)
    cost = torch.where(w > 0, w * relative, 0.0).cumsum(0)
    # Equal prices stand or fall together, so that every rank and every order of the images agrees.
    first_refused = torch.where((cost > w.sum()) & (w > 0), price, math.inf).amin()
    affordable = (price < first_refused) & price.isfinite()
    return torch.where(affordable, price, 0.0).amax()


def make_keeper(
    keep: Keep,
    ball: WassersteinBall,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    reducer: Reducer,
    *,
    model: nn.Module,
    batch_size: int | None = None,
) -> Keeper | None:
    """The keeper of that name; None for `last`, which needs to see nothing.

    Raises:
        UserError: Unknown name.
    """
    if keep == "last":
        return None
    kinds: dict[str, Callable[[WassersteinBall, Tensor, Tensor, Tensor | None, Reducer], Keeper]] = {
        "best": BestIterate,
        "cheapest": CheapestFlips,
        # At p = inf every flip inside the radius is paid for, however near.
        "nearest": CheapestFlips
        if math.isinf(ball.p)
        else partial(BroughtBackFlips, model=model, batch_size=batch_size),
    }
    if keep not in kinds:
        raise UserError(f"attack.keep={keep!r} is unknown; choose last, best, cheapest or nearest")
    return kinds[keep](ball, x, y, weight, reducer)

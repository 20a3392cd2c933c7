"""torchmetrics for whole-set robustness: summed states, so that any batching and any number of ranks agree.

Every `update` takes a `weight` [B] that is 0 for padding. Counts are int64, sums float64. `compute` returns a
dictionary of Python-convertible scalars under the keys given in each class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wdro_train.metrics.functional import accuracy_ratio, first_order_quantities
from wdro_train.theory.ball import WassersteinBall
from wdro_train.theory.losses import correct
from wdro_train.theory.power_mean import merge, moment, power_mean
from wdro_train.theory.robustness_curve import RobustnessCurve
from wdro_train.utils.contract import NonFiniteLogitsError


class _SummedMetric(Metric):
    """States added over batches and ranks."""

    full_state_update = False
    is_differentiable = False

    def _add_sums(self, names: tuple[str, ...], dtype: torch.dtype) -> None:
        for name in names:
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Moves states between devices; training in half precision does not touch their type."""
        return super()._apply(lambda state: fn(state).to(state.dtype), exclude_state)

    def _check_finite(self, clean_logits: Tensor, counts: Tensor) -> None:
        """Not a number is no mistake of the network, but something wrong with it.

        Raises:
            NonFiniteLogitsError: NaN or infinite logits of clean images that count.
        """
        if not clean_logits[counts].isfinite().all():
            raise NonFiniteLogitsError(
                "the network returns NaN or infinite logits on clean images; repair it, or compute it in float32"
            )

    def _scalars(self, **values: float | Tensor) -> dict[str, Tensor]:
        return {key: torch.as_tensor(value, dtype=torch.float32, device=self.device) for key, value in values.items()}


class Mean(_SummedMetric):
    """A weighted mean; `compute` returns it as a scalar.

    >>> metric = Mean()
    >>> metric.update(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0]))
    >>> metric.compute()
    tensor(2.)
    """

    value: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_sums(("value", "total"), torch.float64)

    def update(self, values: Tensor, weight: Tensor) -> None:
        """Add values with their weights: two tensors of one shape."""
        self.value += (values.detach().double() * weight).sum()
        self.total += weight.sum()

    def compute(self) -> Tensor:
        """Sum of weight times value over sum of weights."""
        return (self.value / self.total).float()


class CleanAccuracy(_SummedMetric):
    """A = P(S): share of images whose label's logit is strictly the largest (a tie is wrong).

    Keys: `clean_acc`.

    >>> metric = CleanAccuracy()
    >>> metric.update(torch.tensor([[2.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1]), torch.ones(2))
    >>> metric.compute()
    {'clean_acc': tensor(0.5000)}
    """

    hits: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_sums(("hits", "total"), torch.int64)

    def update(self, clean_logits: Tensor, labels: Tensor, weight: Tensor) -> None:
        """Count a batch: logits [B, m], labels [B], weight [B]."""
        counts = weight > 0
        self._check_finite(clean_logits, counts)
        self.hits += (correct(clean_logits, labels) & counts).sum()
        self.total += counts.sum()

    def compute(self) -> dict[str, Tensor]:
        """The accuracy, in [0, 1]."""
        return self._scalars(clean_acc=self.hits / self.total)


class AdversarialAccuracy(_SummedMetric):
    """Accuracy left by an attack, its ratio R = A_delta / A, and the budget the attack spent.

    Keys: `adv_acc`, `ratio`, `spent` ((E ||x' - x||_s^p)^(1/p), an upper bound on W_p).

    Args:
        ball: The threat; gives p.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    clean_hits: Tensor
    adv_hits: Tensor
    total: Tensor
    displacement: Tensor

    def __init__(self, ball: WassersteinBall, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p = ball.p
        self._add_sums(("clean_hits", "adv_hits", "total"), torch.int64)
        _add_moment(self, "displacement", ball.p)

    def update(
        self, clean_logits: Tensor, adv_logits: Tensor, labels: Tensor, distances: Tensor, weight: Tensor
    ) -> None:
        """Count a batch: logits [B, m] of clean and perturbed images, displacement norms [B]."""
        counts = weight > 0
        self._check_finite(clean_logits, counts)
        self.clean_hits += (correct(clean_logits, labels) & counts).sum()
        self.adv_hits += (correct(adv_logits, labels) & counts).sum()
        self.total += counts.sum()
        part = moment(distances, weight, self.p)
        self.displacement = merge(torch.stack([self.displacement, part]), self.p)

    def compute(self) -> dict[str, Tensor]:
        """Accuracy and ratio in [0, 1], and the distance spent."""
        adv_acc = (self.adv_hits / self.total).item()
        return self._scalars(
            adv_acc=adv_acc,
            ratio=accuracy_ratio(adv_acc, (self.clean_hits / self.total).item()),
            spent=power_mean(self.displacement, self.p),
        )


class WorstCaseAccuracy(Metric):
    """A_delta of the whole set, by the knapsack over the distances an attack has found: an upper bound.

    Keys: `worst_acc`, `worst_ratio` (A_delta / A).

    >>> metric = WorstCaseAccuracy(WassersteinBall(p=1, norm="inf", delta=0.5))
    >>> metric.update(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.ones(4))
    >>> metric.compute()
    {'worst_acc': tensor(0.3750), 'worst_ratio': tensor(0.5000)}

    Args:
        ball: The threat; any p in [1, inf].
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    found: list[Tensor]

    def __init__(self, ball: WassersteinBall, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p, self.delta = ball.p, ball.delta
        self.add_state("found", [], dist_reduce_fx="cat")

    def update(self, flips: Tensor, weight: Tensor) -> None:
        """Add a batch: distance of each image's flip [B], 0 if misclassified and inf if none; weight [B]."""
        self.found.append(flips[weight > 0].double())

    def compute(self) -> dict[str, Tensor]:
        """The worst-case accuracy over the set as one distribution."""
        curve = RobustnessCurve(dim_zero_cat(self.found).cpu().numpy())
        worst = curve.accuracy(self.delta, self.p)
        values = {"worst_acc": worst, "worst_ratio": accuracy_ratio(worst, curve.clean_accuracy)}
        return {key: torch.as_tensor(value, dtype=torch.float32, device=self.device) for key, value in values.items()}


class FirstOrderBounds(_SummedMetric):
    """The poster's quantities of the first-order worst case Q_delta (W-FGSM), over everything it was shown.

    Keys: `v0` V(0), `w0` W(0) (NaN if nothing is misclassified), `v_q` E_{Q_delta}[J], `upsilon`,
    `v_first_order` V(0) + delta Upsilon, `fgsm_acc` Q_delta(S), `fgsm_spent`, `ratio_upper` R^u,
    `ratio_lower_attack` R~^l, `ratio_lower_gradient` R-^l, `ratio_lower` R^l. The lower bounds are asymptotic.

    Upsilon is that of the whole set. The others are too if every batch was moved with that Upsilon.

    Args:
        ball: The threat.
        **kwargs: Passed to `torchmetrics.Metric`.
    """

    clean_hits: Tensor
    q_hits: Tensor
    total: Tensor
    clean_loss: Tensor
    wrong_loss: Tensor
    q_loss: Tensor
    gradient: Tensor
    displacement: Tensor

    def __init__(self, ball: WassersteinBall, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p, self.q, self.delta = ball.p, ball.q, ball.delta
        self._add_sums(("clean_hits", "q_hits", "total"), torch.int64)
        self._add_sums(("clean_loss", "wrong_loss", "q_loss"), torch.float64)
        _add_moment(self, "gradient", ball.q)
        _add_moment(self, "displacement", ball.p)

    def update(
        self,
        clean_logits: Tensor,
        clean_losses: Tensor,
        q_logits: Tensor,
        q_losses: Tensor,
        dual_norms: Tensor,
        q_distances: Tensor,
        labels: Tensor,
        weight: Tensor,
    ) -> None:
        """Count a batch.

        Args:
            clean_logits: Shape [B, m].
            clean_losses: J at the clean images, shape [B].
            q_logits: Logits of the W-FGSM images, shape [B, m].
            q_losses: J at the W-FGSM images, shape [B].
            dual_norms: ||grad J||_* at the clean images, shape [B].
            q_distances: Displacement of the W-FGSM images, shape [B].
            labels: Shape [B].
            weight: Shape [B]; 0 for padding.
        """
        counts = weight > 0
        self._check_finite(clean_logits, counts)
        right = correct(clean_logits, labels)
        self.clean_hits += (right & counts).sum()
        self.q_hits += (correct(q_logits, labels) & counts).sum()
        self.total += counts.sum()
        self.clean_loss += clean_losses[counts].double().sum()
        self.wrong_loss += clean_losses[counts & ~right].double().sum()
        self.q_loss += q_losses[counts].double().sum()
        slope = moment(dual_norms, weight, self.q)
        self.gradient = merge(torch.stack([self.gradient, slope]), self.q)
        moved = moment(q_distances, weight, self.p)
        self.displacement = merge(torch.stack([self.displacement, moved]), self.p)

    def compute(self) -> dict[str, Tensor]:
        """All quantities of the first-order worst case."""
        quantities = first_order_quantities(
            v0=(self.clean_loss / self.total).item(),
            w0=(self.wrong_loss / (self.total - self.clean_hits)).item(),  # 0 / 0 = NaN if nothing is misclassified
            v_q=(self.q_loss / self.total).item(),
            upsilon=power_mean(self.gradient, self.q).item(),
            delta=self.delta,
            clean_acc=(self.clean_hits / self.total).item(),
            fgsm_acc=(self.q_hits / self.total).item(),
            fgsm_spent=power_mean(self.displacement, self.p).item(),
        )
        return self._scalars(**asdict(quantities))


def _add_moment(metric: Metric, name: str, exponent: float) -> None:
    """A power-mean state, merged over ranks rather than summed."""
    join: Callable[[Tensor], Tensor] = partial(merge, exponent=exponent)
    metric.add_state(name, torch.zeros(3, dtype=torch.float64), dist_reduce_fx=join)

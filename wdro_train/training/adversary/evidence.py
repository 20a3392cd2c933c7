"""What a validation or test batch looked like to whoever judged it, and what each metric takes from that."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FirstOrderEvidence:
    """A batch under the first-order worst case Q_delta (W-FGSM; theory, section 4).

    Attributes:
        clean_losses: J at the clean images, shape [B].
        dual_norms: ||grad_x J||_* at the clean images, float64, shape [B].
        logits: Logits of the images of Q_delta, shape [B, m].
        losses: J at the images of Q_delta, shape [B].
        distances: ||x' - x||_s, how far Q_delta moved each image, float64, shape [B].
    """

    clean_losses: Tensor
    dual_norms: Tensor
    logits: Tensor
    losses: Tensor
    distances: Tensor


@dataclass(frozen=True)
class AttackEvidence:
    """A batch under attack: under the validation attack if there is one, else under the minimum-norm attack.

    Without either, the images are the clean ones.

    Attributes:
        x_adv: The images, shape [B, C, H, W].
        logits: Their logits, shape [B, m].
        distances: ||x' - x||_s, how far the validation attack moved each image, float64, shape [B]; None if there is
            no validation attack.
        flips: Distance of the nearest misclassified point that was found of each image, 0 where the image itself is
            misclassified and infinite where none was found, float64, shape [B].
    """

    x_adv: Tensor
    logits: Tensor
    distances: Tensor | None
    flips: Tensor


@dataclass(frozen=True)
class CertifiedEvidence:
    """Certified radii of some images of a set, which need not be those of one batch.

    Attributes:
        clean_logits: Logits of the images, shape [N, m].
        labels: Shape [N].
        weight: 1 for the images that count and 0 for padding, shape [N].
        radii: Certified radii, float64, shape [N].
    """

    clean_logits: Tensor
    labels: Tensor
    weight: Tensor
    radii: Tensor

    def arguments(self) -> dict[str, Tensor]:
        """Arguments of the metrics' `update` by name."""
        return {
            "preds": self.clean_logits,
            "target": self.labels,
            "weight": self.weight,
            "radii": self.radii,
        }


@dataclass(frozen=True)
class BatchEvidence:
    """What a judge has found out about one batch, for the metrics to count.

    Attributes:
        labels: Shape [B].
        weight: 1 for the images that count and 0 for padding, shape [B].
        clean_logits: Logits of the clean images, shape [B, m].
        first_order: The batch under Q_delta; None if it was not asked for.
        attacked: The batch under attack; None without an adversary.
        certified: Certified radii of this and earlier batches; None without, or until there are enough images.
    """

    labels: Tensor
    weight: Tensor
    clean_logits: Tensor
    first_order: FirstOrderEvidence | None = None
    attacked: AttackEvidence | None = None
    certified: CertifiedEvidence | None = None

    def arguments(self) -> dict[str, Tensor]:
        """Arguments of the metrics' `update` by name, of which a `MetricCollection` gives each metric its own."""
        found = {"preds": self.clean_logits, "target": self.labels, "weight": self.weight}
        if self.first_order is not None:
            found |= {
                "clean_losses": self.first_order.clean_losses,
                "dual_norms": self.first_order.dual_norms,
                "q_preds": self.first_order.logits,
                "q_losses": self.first_order.losses,
                "q_distances": self.first_order.distances,
            }
        if self.attacked is not None:
            found |= {"adv_preds": self.attacked.logits, "flips": self.attacked.flips}
            if self.attacked.distances is not None:
                found |= {"distances": self.attacked.distances}
        return found

"""What is logged once an epoch: means over the training batches, and what a judge's evidence on a whole set shows."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchmetrics import MetricCollection

from wdro_train.metrics import CleanAccuracy, Mean
from wdro_train.objectives import ObjectiveResult
from wdro_train.training.adversary import BatchEvidence, CertifiedEvidence, Judge
from wdro_train.training.batches import StepBatch

_ON_THE_BAR = ("clean_acc", "adv_acc", "worst_acc", "certified_acc", "ratio", "ratio_upper", "ratio_lower")
"""Keys that the progress bar shows too."""


class JudgedMetrics(nn.Module):
    """The metrics of one validation or test set.

    Args:
        stage: `val` or `test`, the prefix of the keys.
        judge: Gives the evidence, and knows which metrics count it.
    """

    def __init__(self, stage: str, judge: Judge) -> None:
        super().__init__()
        self.collection = MetricCollection(list(judge.metrics()), prefix=f"{stage}/", compute_groups=False)
        self.certified = MetricCollection(list(judge.certified_metrics()), prefix=f"{stage}/", compute_groups=False)
        self._on_the_bar = {f"{stage}/{key}" for key in _ON_THE_BAR}

    def update(self, evidence: BatchEvidence) -> None:
        """Count a batch."""
        self.collection.update(**evidence.arguments())
        self.certify(evidence.certified)

    def certify(self, evidence: CertifiedEvidence | None) -> None:
        """Count certified images; None for none."""
        if evidence is not None:
            self.certified.update(**evidence.arguments())

    def take(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The values of the whole set, those for the progress bar first; what comes next is another set."""
        values = self.collection.compute() | self.certified.compute()
        self.collection.reset()
        self.certified.reset()
        shown = {key: value for key, value in values.items() if key in self._on_the_bar}
        return shown, {key: value for key, value in values.items() if key not in shown}


class TrainingMetrics(nn.Module):
    """Means over the batches of an epoch, as the network was when each of them was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.means = nn.ModuleDict()
        self.clean = CleanAccuracy()
        self.adversarial = CleanAccuracy()

    def update(self, result: ObjectiveResult, batch: StepBatch, terms: Mapping[str, Tensor]) -> None:
        """Count a batch.

        Args:
            result: What the objective returned.
            batch: What it was given.
            terms: Further scalars to take the mean of.
        """
        for key, value in ({"loss": result.loss} | dict(terms) | result.terms).items():
            if key not in self.means:
                self.means[key] = Mean().to(result.loss.device)
            mean = self.means[key]
            assert isinstance(mean, Mean)
            mean.update(value, batch.weight.sum())
        for metric, logits in ((self.clean, result.clean_logits), (self.adversarial, result.adv_logits)):
            if logits is not None:
                metric.update(logits, batch.y, batch.weight)

    def take(self) -> dict[str, Tensor]:
        """The values of the epoch, without those of which there was none; what comes next is another epoch.

        All ranks meet here. Nothing is left for Lightning to join when a value is read, since progress bars and loggers
        read on one rank only.
        """
        values: dict[str, Tensor] = {}
        for key, mean in self.means.items():
            assert isinstance(mean, Mean)
            if mean.update_called:
                values[f"train/{key}"] = mean.compute()
                mean.reset()
        for name, metric in (("clean_acc", self.clean), ("adv_acc", self.adversarial)):
            if metric.update_called:
                values[f"train/{name}"] = metric.compute()["clean_acc"]
                metric.reset()
        return values

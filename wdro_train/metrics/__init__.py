"""torchmetrics of robustness over a whole dataset, one file a metric.

| logged as `val/...` or `test/...`                                        | file                      |
|--------------------------------------------------------------------------|---------------------------|
| `clean_acc`                                                              | `clean_accuracy.py`       |
| `adv_acc`, `ratio`, `spent`                                              | `adversarial_accuracy.py` |
| `worst_acc`, `worst_ratio`                                               | `worst_case_accuracy.py`  |
| `certified_acc`, `certified_ratio`                                       | `certified_accuracy.py`   |
| `v0`, `w0`, `v_q`, `v_first_order`, `upsilon`, `fgsm_acc`, `fgsm_spent`, | `first_order_bounds.py`   |
| `ratio_upper`, `ratio_lower`, `ratio_lower_attack`, `ratio_lower_gradient` |                         |
| `loss`                                                                   | `mean_loss.py`            |

They are used as those of torchmetrics are, and beside them: `update(preds, target, ...)` takes logits and labels, a
`weight` is optional, `plot` draws values. A `torchmetrics.MetricCollection` hands each metric the arguments that its
`update` names; in training these are what `wdro_train.training.adversary.BatchEvidence` provides.

>>> import torch
>>> from torchmetrics import MetricCollection
>>> from torchmetrics.classification import MulticlassAccuracy
>>> from wdro_train.theory.ball import WassersteinBall
>>> ball = WassersteinBall(p=2, norm="inf", delta="8/255")
>>> metrics = MetricCollection([MulticlassAccuracy(2, average="micro"), CleanAccuracy(), WorstCaseAccuracy(ball)])
>>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1])
>>> metrics.update(preds=logits, target=labels, flips=torch.tensor([0.01, 0.4]))
>>> sorted(metrics.compute())
['MulticlassAccuracy', 'clean_acc', 'worst_acc', 'worst_ratio']
"""

from wdro_train.metrics.adversarial_accuracy import AdversarialAccuracy
from wdro_train.metrics.certified_accuracy import CertifiedAccuracy
from wdro_train.metrics.clean_accuracy import CleanAccuracy
from wdro_train.metrics.first_order_bounds import FirstOrderBounds
from wdro_train.metrics.mean import Mean
from wdro_train.metrics.mean_loss import MeanLoss
from wdro_train.metrics.worst_case_accuracy import WorstCaseAccuracy

__all__ = [
    "AdversarialAccuracy",
    "CertifiedAccuracy",
    "CleanAccuracy",
    "FirstOrderBounds",
    "Mean",
    "MeanLoss",
    "WorstCaseAccuracy",
]

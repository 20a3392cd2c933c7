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

A `torchmetrics.MetricCollection` hands each metric the arguments that its `update` names, of those that
`wdro_train.training.adversary.BatchEvidence` provides.
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

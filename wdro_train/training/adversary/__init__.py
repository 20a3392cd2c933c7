"""What an adversary does to a batch: it attacks training batches, and judges validation and test batches.

`attacker` and `judge` are the two; `evidence` is what the judge hands to the metrics, `certified_groups` certifies many
images at a time, `whole_set` measures Upsilon of a set before it is judged, and `random_numbers` seeds the random
starts of both.
`wdro_train.training.callbacks.DistributionalAdversary` attaches them to an `AdversarialModule`, such as
`RobustClassifier`.
"""

from wdro_train.training.adversary.attacker import Attacker
from wdro_train.training.adversary.evidence import AttackEvidence, BatchEvidence, CertifiedEvidence, FirstOrderEvidence
from wdro_train.training.adversary.judge import AdversarialJudge, CleanJudge, Judge
from wdro_train.training.adversary.whole_set import EvaluationSet, gradient_moment_of_set

__all__ = [
    "AdversarialJudge",
    "AttackEvidence",
    "Attacker",
    "BatchEvidence",
    "CertifiedEvidence",
    "CleanJudge",
    "EvaluationSet",
    "FirstOrderEvidence",
    "Judge",
    "gradient_moment_of_set",
]

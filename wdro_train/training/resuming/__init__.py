"""Resuming compares like with like: what of a checkpoint still holds under the configuration that goes on with it.

A score is only comparable with scores of the same measurement. Every key of the configuration is therefore of one
`Kind` (`kinds`), the stored and the present configuration are compared key by key (`comparison`), what follows is
decided and said by one object (`resumption`), and what no longer holds is taken out of the checkpoint (`forgetting`).
`taking_up` is how Lightning's loading of a checkpoint comes by, and `earlier_files` keeps files of the earlier run.
"""

from wdro_train.training.resuming.comparison import Change, compare
from wdro_train.training.resuming.earlier_files import set_aside
from wdro_train.training.resuming.forgetting import forget
from wdro_train.training.resuming.kinds import CLASS_NAMES, DATA_DIGEST, Kind
from wdro_train.training.resuming.resumption import Resumption
from wdro_train.training.resuming.taking_up import Continuable, TakenUp, take_up

__all__ = [
    "CLASS_NAMES",
    "DATA_DIGEST",
    "Change",
    "Continuable",
    "Kind",
    "Resumption",
    "TakenUp",
    "compare",
    "forget",
    "set_aside",
    "take_up",
]

"""Random starts that depend on neither the number of ranks nor how often a run was interrupted."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch.trainer.states import RunningStage

from wdro_train.training.batches import StepBatch

# Part of every seed: another number for a stage would change what is drawn in it.
_STAGES = {RunningStage.TRAINING: 0, RunningStage.VALIDATING: 1, RunningStage.TESTING: 2}


def batch_generator(seed: int, batch: StepBatch) -> torch.Generator:
    """The random numbers of an attack on one batch, the same on all ranks.

    In training every epoch draws others; a validation or test set is attacked from the same starts in every epoch, so
    that scores differ by the network alone. Sanity checks draw what validation draws.

    Args:
        seed: Of the adversary.
        batch: Gives stage, epoch, number and device.
    """
    code = 1 if batch.stage is None else _STAGES.get(batch.stage, 1)
    epoch = batch.epoch if batch.stage == RunningStage.TRAINING else 0
    key = np.random.SeedSequence([seed, code, epoch, batch.index])
    return torch.Generator(batch.x.device).manual_seed(int(key.generate_state(1, np.uint64)[0] >> np.uint64(1)))

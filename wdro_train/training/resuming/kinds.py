"""What each key of a configuration decides about, and so what a changed value makes worthless in a checkpoint.

A key that nobody has sorted counts as part of what a score measures, so that a new key cannot be forgotten: at worst a
resumed run forgets a best epoch that it could have kept, but it never compares scores of two measurements.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from wdro_train.training.resuming.values import same_value

DATA_DIGEST = "data_digest"
"""Key of the configuration in a checkpoint: a digest of the validation images and labels."""
CLASS_NAMES = "class_names"
"""Key of the configuration in a checkpoint: what the classes are called, in the order of the logits."""


class Kind(Enum):
    """What a key of the configuration decides about."""

    MEASURE = "what a validation score measures"
    ATTACK = "what the training attack does, and so what it has learnt"
    OPTIMIZER = "what the optimizer does with a gradient"
    SCHEDULE = "how the learning rate goes on"
    OTHER = "nothing that a checkpoint remembers"


# The first pattern that matches decides; a key that none matches is part of the measurement.
_KINDS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    (
        Kind.MEASURE,
        (
            "attack.p",
            "attack.norm",
            "attack.delta",
            *(f"callbacks.adversary.attack.{k}" for k in ("p", "norm", "delta")),
        ),
    ),
    (Kind.ATTACK, ("attack", "attack.*", "callbacks.adversary.attack", "callbacks.adversary.attack.*")),
    (Kind.OPTIMIZER, ("optimizer", "optimizer.*")),
    (
        Kind.SCHEDULE,
        (
            "scheduler",
            "scheduler.*",
            "data.batch_size",
            *(f"trainer.{key}" for key in ("max_epochs", "min_epochs", "max_steps", "min_steps", "max_time")),
            "trainer.limit_train_batches",
            "trainer.accumulate_grad_batches",
        ),
    ),
    (
        Kind.OTHER,
        (
            *("name", "seed", "ckpt_path", "resume", "test", "dry_run", "verbose", "run_dir"),
            *("channels_last", "compile", "data.keep_decoded"),
            *("hydra.*", "logger", "logger.*", CLASS_NAMES, f"{CLASS_NAMES}.*"),
            *("finetune.*", "objective", "objective.*", "model.weights", "model.pretrained"),
            *("data.seed", "data.num_workers", "data.download", "data.delta.*", "data.augment", "data.augment.*"),
            *("callbacks.checkpoint.dirpath", "callbacks.checkpoint.verbose", "callbacks.checkpoint.save_weights_only"),
            *("callbacks.checkpoint.save_on_train_epoch_end", "callbacks.checkpoint.enable_version_counter"),
            *("callbacks.overfitting_warning.tolerance", "callbacks.adversary.test_distances*"),
            *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.strategy.*"),
            *("trainer.sync_batchnorm", "trainer.use_distributed_sampler", "trainer.default_root_dir"),
            *("trainer.deterministic", "trainer.benchmark", "trainer.profiler", "trainer.profiler.*"),
            *("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.detect_anomaly"),
            *("trainer.enable_*", "trainer.log_every_n_steps", "trainer.num_sanity_val_steps", "trainer.limit_test_*"),
            *("trainer.limit_predict_batches", "trainer.check_val_every_n_epoch", "trainer.val_check_interval"),
        ),
    ),
)
# Callbacks that neither judge nor remember a score, by the name of their class, whatever the configuration calls them.
_SCORELESS = {
    *("AdversarialImages", "AdversarialWeightPerturbation", "GradualWarmup", "LearningRate", "ProgressBar"),
    *("RadiusWarmup", "NetworkExecution", "SeedEpoch", "TrialPruning"),
    *("ValidationHistory", "DeviceStatsMonitor", "LearningRateMonitor", "ModelSummary", "RichModelSummary"),
    *("RichProgressBar", "ThroughputMonitor", "Timer", "TQDMProgressBar"),
}
_CHECKPOINTS = {"RunCheckpoint", "ModelCheckpoint"}


def kind(key: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> Kind:
    """What a key decides about.

    Args:
        key: With dots: `callbacks.checkpoint.monitor`.
        before: The configuration in the checkpoint.
        now: The one that is to go on.
    """
    if key == "data.eval_batch_size" and _batches_do_not_matter(before) and _batches_do_not_matter(now):
        return Kind.OTHER
    if key.startswith("callbacks.") and _is_scoreless(key.split(".")[1], before, now):
        return Kind.OTHER
    for found, patterns in _KINDS:
        if any(fnmatchcase(key, pattern) for pattern in patterns):
            return found
    return Kind.MEASURE


def _batches_do_not_matter(config: Mapping[str, Any]) -> bool:
    """Whether validation in other batches gives the same score: no budget is shared in them and none is left out."""
    attack, trainer = config.get("attack"), config.get("trainer")
    p = attack.get("p") if isinstance(attack, Mapping) else None
    limit = trainer.get("limit_val_batches") if isinstance(trainer, Mapping) else None
    return same_value(p, "inf") and (limit is None or (isinstance(limit, float) and limit == 1))


def _is_scoreless(name: str, *configs: Mapping[str, Any]) -> bool:
    """Whether a callback, wherever it is configured, has nothing to do with scores."""
    nodes = [(config.get("callbacks") or {}).get(name) for config in configs]
    there = [node for node in nodes if isinstance(node, Mapping)]
    for node in there:
        target = str(node.get("_target_")).rpartition(".")[2]
        if target not in _SCORELESS and not (target in _CHECKPOINTS and node.get("monitor") is None):
            return False
    return bool(there)

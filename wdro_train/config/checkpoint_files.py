"""Where a run keeps its checkpoints, below its folder; `conf/callbacks/default.yaml` gives them these names."""

from __future__ import annotations

LAST_CHECKPOINT = "checkpoints/last.ckpt"
"""Of the last epoch, from which a run is resumed."""

BEST_CHECKPOINT = "checkpoints/best.ckpt"
"""Of the epoch with the best validation score, which is judged."""

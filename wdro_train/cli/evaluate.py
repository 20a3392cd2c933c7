"""Judge a checkpoint: `python evaluate.py [ckpt_path=a.ckpt,b.ckpt]`."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from wdro_train.cli import CONF, run
from wdro_train.config import slurm
from wdro_train.config.resolvers import register_resolvers

register_resolvers()
OmegaConf.register_new_resolver("run_folder", slurm.run_folder, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def task(cfg: DictConfig) -> float | None:
    """Compose, instantiate, run."""
    from wdro_train.evaluation.run import evaluate

    result: float | None = run.run(evaluate, cfg)
    return result


def main() -> None:
    """The command line."""
    sys.argv[1:] = run.comma_list(sys.argv[1:], "ckpt_path")
    run.open_door(task, "evaluate")


if __name__ == "__main__":
    main()

"""Train a classifier: `python train.py model=resnet18 attack.p=2`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig, OmegaConf

from wdro_train.cli import CONF, run
from wdro_train.config import slurm
from wdro_train.config.resolvers import register_resolvers

register_resolvers()
OmegaConf.register_new_resolver("run_folder", slurm.run_folder, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def task(cfg: DictConfig) -> float | None:
    """Compose, instantiate, run."""
    from wdro_train.training.run import train

    result: float | None = run.run(train, cfg)
    return result


def main() -> None:
    """The command line."""
    run.open_door(task, "train")


if __name__ == "__main__":
    main()

"""Train a classifier: `python train.py model=resnet18 attack.p=2`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig, OmegaConf

from wdro_train import doors, jobs
from wdro_train.commands import CONF
from wdro_train.configuration import register_resolvers

register_resolvers()
OmegaConf.register_new_resolver("run_folder", jobs.run_folder, replace=True)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def task(cfg: DictConfig) -> float | None:
    """Compose, instantiate, run."""
    from wdro_train.training import train

    result: float | None = doors.run(train, cfg)
    return result


def main() -> None:
    """The command line."""
    doors.open_door(task, "train")


if __name__ == "__main__":
    main()

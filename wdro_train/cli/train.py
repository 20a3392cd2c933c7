"""Train a classifier: `python train.py model=resnet18 attack.p=2`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from wdro_train.cli import CONF, run
from wdro_train.config.resolvers import register_resolvers

register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def task(cfg: DictConfig) -> float | None:
    """One run of a composed configuration: what chose its best epoch, for sweepers that optimise it."""
    from wdro_train.training.run import train

    result: float | None = run.run(train, cfg)
    return result


def main() -> None:
    """The command line."""
    run.run_command_line(task, "train")


if __name__ == "__main__":
    main()

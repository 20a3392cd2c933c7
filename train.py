"""Train a classifier: `python train.py model=resnet18 attack.p=2`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from wdro_train import doors
from wdro_train.configuration import register_resolvers

register_resolvers()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Compose, instantiate, run."""
    from wdro_train.training import train

    result: float | None = doors.run(train, cfg)
    return result


if __name__ == "__main__":
    main()

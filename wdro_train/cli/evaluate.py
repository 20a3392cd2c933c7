"""Judge a checkpoint: `python evaluate.py [ckpt_path=a.ckpt,b.ckpt]`."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from wdro_train.cli import CONF, run
from wdro_train.cli.arguments import comma_list
from wdro_train.config.resolvers import register_resolvers

register_resolvers()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def task(cfg: DictConfig) -> float | None:
    """One evaluation of a composed configuration: the worst-case accuracy, for sweepers that optimise it."""
    from wdro_train.evaluation.run import evaluate

    result: float | None = run.run(evaluate, cfg)
    return result


def main() -> None:
    """The command line."""
    sys.argv[1:] = comma_list(comma_list(sys.argv[1:], "ckpt_path"), "labels")
    run.run_command_line(task, "evaluate")


if __name__ == "__main__":
    main()

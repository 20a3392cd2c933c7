"""Lay out the workspace of a project in W&B: training, accuracy, ratios and bounds, test, images, sweeps.

`python -m wdro_train.tools.wandb_workspace --entity ME` saves it; `--json FILE` writes it to a file and sends nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import wandb

from wdro_train.tools import command_line
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import write_text
from wdro_train.utils.optional_imports import optional

CURVES: dict[str, dict[str, tuple[str, ...]]] = {
    "accuracy": {
        "clean and adversarial accuracy": ("val/clean_acc", "val/adv_acc"),
        "clean and worst-case accuracy": ("val/clean_acc", "val/worst_acc"),
        "worst case between certificate and attacks": ("val/certified_acc", "val/worst_acc", "val/adv_acc"),
    },
    "ratios and bounds": {
        "ratio between its bounds": ("val/ratio_upper", "val/ratio", "val/ratio_lower"),
        "ratio between certificate and attack": ("val/ratio", "val/certified_ratio"),
    },
    "first order": {
        "Upsilon": ("val/upsilon",),
        "spent distance": ("val/spent",),
        "first-order value and that of Q_delta": ("val/v_first_order", "val/v_q"),
    },
}
TRAINING: dict[str, tuple[str, tuple[str, ...]]] = {
    "loss of every step": ("trainer/global_step", ("train/loss_step",)),
    "loss": ("epoch", ("train/loss",)),
    "accuracy of the images trained on": ("epoch", ("train/clean_acc", "train/adv_acc")),
    "learning rate": ("epoch", ("train/learning_rate",)),
}
TEST: dict[str, tuple[str, ...]] = {
    "accuracy on the test set": ("test/clean_acc", "test/adv_acc", "test/worst_acc", "test/certified_acc"),
    "ratio on the test set": ("test/worst_ratio", "test/ratio", "test/certified_ratio"),
}
IMAGES = ("adversarial_images", "adversarial_examples")
VARIED = ("attack.p", "attack.delta", "objective._target_", "seed")
# One plot each: a run that lacks a column is not drawn, and no run need have both. The summary is the best epoch's.
JUDGED = ("val/adv_acc", "val/worst_acc", "val/certified_acc")


def workspace(entity: str, project: str) -> Any:
    """The workspace, not yet saved.

    Args:
        entity: User or team that owns the project.
        project: Where the runs are, `logger.wandb.project`.

    Raises:
        UserError: The package wandb-workspaces is not installed.
    """
    spaces = optional("wandb_workspaces.workspaces", "dashboard")
    panels = optional("wandb_workspaces.reports.v2", "dashboard")
    lines = [panels.LinePlot(title=title, x=x, y=list(keys)) for title, (x, keys) in TRAINING.items()]
    sections = [spaces.Section(name="training", is_open=True, panels=lines)]
    sections += [
        spaces.Section(
            name=name,
            is_open=True,
            panels=[panels.LinePlot(title=title, x="epoch", y=list(keys)) for title, keys in plots.items()],
        )
        for name, plots in CURVES.items()
    ]
    sweeps = []
    for judged in JUDGED:
        columns = [panels.ParallelCoordinatesPlotColumn(metric=panels.Config(key)) for key in VARIED]
        columns.append(panels.ParallelCoordinatesPlotColumn(metric=panels.SummaryMetric(judged)))
        sweeps.append(panels.ParallelCoordinatesPlot(title=judged, columns=columns))
    bars = [panels.BarPlot(title=title, metrics=list(keys)) for title, keys in TEST.items()]
    sections.append(spaces.Section(name="test", is_open=True, panels=bars))
    sections.append(spaces.Section(name="images", is_open=True, panels=[panels.MediaBrowser(media_keys=list(IMAGES))]))
    sections.append(spaces.Section(name="sweeps", is_open=True, panels=sweeps))
    return spaces.Workspace(entity=entity, project=project, name="wdro_train", sections=sections)


def as_json(space: Any) -> str:
    """The workspace as the JSON that would be sent to W&B.

    Args:
        space: From `workspace`.
    """
    # The package has no public way to look at a workspace without saving it.
    text: str = space._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)
    return text + "\n"


def main() -> None:
    """Run the command."""
    parser = command_line.parser("wandb_workspace", __doc__)
    parser.add_argument("--entity", default="", help="The W&B user or team that owns the project.")
    parser.add_argument("--project", default="wdro_train", help="The W&B project, by default wdro_train.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="Write the workspace to this file and send nothing.")
    arguments = parser.parse_args()
    _build(arguments.entity, arguments.project, arguments.json)


def _build(entity: str, project: str, file: Path | None) -> None:
    if file is None and not entity:
        raise UserError("--entity is missing; name the W&B user or team, or write a file with --json FILE")
    space = workspace(entity, project)
    if file is not None:
        write_text(file, as_json(space))
        print(f"workspace  {file}")
        return
    try:
        space.save()
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"W&B did not take the workspace for {entity}/{project} ({reason}); run wandb login") from error
    print(f"workspace  {space.url}")


if __name__ == "__main__":
    command_line.run(main)

"""A trained network to use elsewhere: from a run, a checkpoint or an exported folder, without trainer and data."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from torch import Tensor, nn

from wdro_train.config.build import build_model
from wdro_train.config.checkpoint_files import BEST_CHECKPOINT, LAST_CHECKPOINT
from wdro_train.config.constructors import permitted
from wdro_train.config.one_sentence import one_sentence
from wdro_train.config.run_folders import METRICS_FILE
from wdro_train.config.trusted import checked
from wdro_train.data import ImageFolderDataModule
from wdro_train.evaluation.network_figures import DAMAGED, Figures, figures_of_report, figures_of_run
from wdro_train.evaluation.networks import load_network
from wdro_train.models import load_weights
from wdro_train.theory.ball import WassersteinBall
from wdro_train.training.checkpoint import read_checkpoint
from wdro_train.training.resuming import CLASS_NAMES
from wdro_train.utils.contract import logits_of
from wdro_train.utils.errors import UserError

CONFIG_FILE = "config.json"
"""Of an exported folder: what the network is, beside its weights."""
WEIGHTS_FILES = ("model.safetensors", "model.pt")
"""Of an exported folder, one of them: weights that `load` reads."""


class TrainedNetwork(nn.Module):
    """A trained network in evaluation mode, and what is known of it.

    Calling it maps images [B, C, H, W] in [0, 1] to logits [B, m]; the normalisation is inside.

    Args:
        network: The network itself.
        model: The configuration from which it is built: `_target_` and arguments.
        classes: Names of the classes, in the order of the logits.
        shape: (C, H, W) of the images.
        threat: The ball that it was trained for.
        figures: What was measured of it; None if nothing is known.
        path: Where the weights came from.
        dataset: What the data set that it was trained on is called.
        command: What was typed to train it.

    Attributes:
        network: The network itself, for `state_dict` and for certificates.
        model: As above, and so are `classes`, `shape`, `threat`, `figures`, `path`, `dataset` and `command`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        model: Mapping[str, Any],
        classes: Sequence[str],
        shape: Sequence[int],
        threat: WassersteinBall,
        figures: Figures | None,
        path: Path,
        dataset: str = "",
        command: str = "",
    ) -> None:
        super().__init__()
        self.network = network
        self.model = dict(model)
        self.classes, self.shape = tuple(classes), tuple(shape)
        self.threat, self.figures = threat, figures
        self.path, self.dataset, self.command = path, dataset, command
        self.eval()
        with torch.no_grad():
            weights = next(network.parameters(), torch.zeros(1))
            answer = network(torch.full((1, *shape), 0.5, dtype=weights.dtype, device=weights.device))
        logits_of(answer, 1)
        self._wraps_logits = not isinstance(answer, Tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, m] of images [B, C, H, W] in [0, 1]."""
        found = self.network(x)
        return logits_of(found, x.shape[0]) if self._wraps_logits else found  # without a look at values: it is traced

    @property
    def trained_network(self) -> nn.Module:
        """The network, for whoever reads it operation by operation (`wdro_train.certificates.reading.network_of`)."""
        return self.network

    @property
    def name(self) -> str:
        """The name of its architecture, such as `small_cnn`."""
        own = str(self.model["_target_"]).rpartition(".")[-1]
        return str(self.model.get("name") or own)


def load(
    path: str | Path,
    *,
    report: str | Path | None = None,
    device: torch.device | str = "cpu",
    allowed: Collection[str] = (),
) -> TrainedNetwork:
    """A trained network, ready to classify: neither a trainer nor its data are needed.

    The file is read as data: nothing in it is run, and only constructors of this package are built that
    `wdro_train.config.constructors` lists, or that `allowed` names.

    Args:
        path: The folder of a run (its best epoch) or of its checkpoints, a checkpoint, or a folder that
            `wdro_train.tools.export` wrote with weights.
        report: A `report.json` of `evaluate.py` about this network, or its folder: its figures take the place of those
            that the run measured at its end.
        device: Where to put the network.
        allowed: Constructors that the file may ask for besides those of this package, such as `my_package.models.mlp`.

    Raises:
        UserError: There is no network there, or the file asks for what is neither this package's nor allowed.
    """
    folder = Path(path)
    if (folder / CONFIG_FILE).is_file():
        if report is not None:
            raise UserError(f"{folder} is an export, whose figures are in it; give report=... when you load a run")
        return _exported(folder, allowed).to(device)
    return _trained(checkpoint_of(folder), report, allowed).to(device)


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint that a path means: itself, or the best one of a run's folder, or else its last one.

    The folder may also be the one inside a run's in which its checkpoints are.

    Raises:
        UserError: There is none.
    """
    place = Path(path)
    if place.is_file():
        return place
    best, last = Path(BEST_CHECKPOINT), Path(LAST_CHECKPOINT)
    tried = [place / file for file in (best, last, best.name, last.name)]
    found = next((file for file in tried if file.is_file()), None)
    if found is None:
        what = f"no checkpoint in {place}" if place.is_dir() else f"nothing at {place}"
        raise UserError(f"there is {what}; give the folder of a training run, or a .ckpt file")
    return found


def _trained(checkpoint: Path, report: str | Path | None, allowed: Collection[str]) -> TrainedNetwork:
    """The network of a checkpoint, with the figures of its run or of a report."""
    loaded = load_network(checkpoint, allowed=allowed)
    config, data, run = loaded.config, loaded.config["data"], checkpoint.resolve().parent.parent
    with _whole(run / METRICS_FILE, "remove it to load the network without its figures"):
        figures = of_run = figures_of_run(run, checkpoint.name, read_checkpoint(checkpoint).get("epoch"), config)
    if report is not None:
        with _whole(report, "judge the network with evaluate.py again"):
            figures = figures_of_report(report, checkpoint)
    return TrainedNetwork(
        loaded.model,
        model=config["model"],
        classes=config.get(CLASS_NAMES) or [str(k) for k in range(data["num_classes"])],
        shape=data["shape"],
        threat=loaded.threat(),
        figures=figures,
        path=checkpoint,
        dataset=data_name(data),
        command="" if of_run is None else of_run.command,
    )


def data_name(data: Mapping[str, Any]) -> str:
    """What the images are called: the data set's name, the folder they lie in, or else the class that reads them.

    Args:
        data: The configuration of the data.
    """
    reader = str(data["_target_"]).rpartition(".")[-1]
    folder = Path(str(data.get("root") or "")).name if reader == ImageFolderDataModule.__name__ else ""
    return str(data.get("name") or folder or reader)


def _exported(folder: Path, allowed: Collection[str]) -> TrainedNetwork:
    """The network of a folder that the command `export` wrote."""
    source = folder / CONFIG_FILE
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        node, threat = content["model"], WassersteinBall(**content["threat"])
        figures = None if content["figures"] is None else Figures.from_dict(content["figures"])
        about = {key: str(content[key]) for key in ("dataset", "command")}
        classes, shape = [str(name) for name in content["classes"]], [int(side) for side in content["shape"]]
    except UserError as error:
        raise UserError(f"{source} is damaged: {error}") from error
    except (OSError, *DAMAGED) as error:
        raise UserError(f"{source} was not written by wdro_train; give the folder of a run, or a checkpoint") from error
    weights = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(
            f"{folder} holds no weights but a program for another library; open it there, or export with "
            "--format safetensors"
        )
    model = checked(node, "model", source, allowed)
    with one_sentence(
        lambda error: f"the network of {source} cannot be made ({error}); export it again",
        (InstantiationException, TypeError, ValueError, LookupError, AttributeError, RuntimeError),
    ):
        network = build_model(OmegaConf.create(model), trained_elsewhere=False, only=permitted("model", allowed))
        load_weights(network, weights)
        return TrainedNetwork(
            network, model=model, classes=classes, shape=shape, threat=threat, figures=figures, path=weights, **about
        )


def _whole(file: str | Path, mend: str) -> AbstractContextManager[None]:
    """Inside, what a file of another form raises becomes a sentence about it."""
    return one_sentence(lambda error: f"{file} is damaged ({type(error).__name__}: {error}); {mend}", DAMAGED)

"""Take a trained network out of the framework: a folder with its weights or its program, what it is, and a model card.

`python -m wdro_train.tools.export RUN --format onnx` writes `RUN/export/onnx`. What was written is read back and has to
give the network's own logits before the folder gets its name; `wdro_train.load` reads folders with weights.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wdro_train.config.writable import refuse_unwritable
from wdro_train.evaluation.network_figures import newest_report
from wdro_train.evaluation.networks import newest_checkpoint
from wdro_train.evaluation.trained import CONFIG_FILE, TrainedNetwork, checkpoint_of, load
from wdro_train.tools import command_line, hub
from wdro_train.tools.export_formats import FORMATS, Format
from wdro_train.tools.model_card import CARD_FILE, card, command_for_others
from wdro_train.utils.errors import UserError
from wdro_train.utils.files import write_json, write_text
from wdro_train.utils.versions import package_version

TOLERANCE = 1e-4
"""How far logits of the file may be off, as a share of the largest one: float32 sums in another order. A ResNet-18
is off by 1e-6; a wrong weight or normalisation by more than 1e-2."""
_BATCHES = (1, 3)  # the number of images must be free, and one image is where programs go wrong


def export(network: TrainedNetwork, format_name: str, out: Path) -> float:
    """Write a folder with the network, `config.json` and a model card; it is there whole or not at all.

    Args:
        network: From `wdro_train.load`, on the CPU.
        format_name: A key of `FORMATS`.
        out: The folder, which must not be there.

    Returns:
        The largest difference between logits of the file and of the network, as a share of the largest logit.

    Raises:
        UserError: The folder is there or cannot be written, a package is missing, the network cannot be written in this
            format, or what was written computes something else.
    """
    chosen = FORMATS[format_name]
    refuse_existing(out)
    chosen.require()
    scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    refuse_unwritable("--out", str(out.parent))
    try:
        scratch.mkdir(parents=True)
        chosen.write(network, scratch / chosen.file)
        difference = _check(network, chosen, scratch / chosen.file)
        write_json(scratch / CONFIG_FILE, _about(network, format_name, chosen), indent=2)
        write_text(scratch / CARD_FILE, card(network, format_name))
        refuse_existing(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return difference


def refuse_existing(out: Path) -> None:
    """Leave alone what is there.

    Raises:
        UserError: There is something at `out`.
    """
    if out.exists():
        raise UserError(f"{out} is there already; choose another folder with --out, or remove it")


def _check(network: TrainedNetwork, chosen: Format, path: Path) -> float:
    """Read the file and compare its logits with the network's, on random images in [0, 1].

    Raises:
        UserError: They differ by more than rounding does, or the network's own differ from one call to the next.
    """
    again = chosen.read(network, path)
    largest = 0.0
    generator = torch.Generator().manual_seed(0)
    for count in _BATCHES:
        images = torch.rand(count, *network.shape, generator=generator)
        expected = _logits(network, images)
        if not expected.isfinite().all():
            raise UserError(f"{network.name} gives logits that are not finite, which no export mends; train it again")
        if not torch.equal(expected, _logits(network, images)):
            raise UserError(f"{network.name} answers at random, so that no export of it can be checked; fix its draws")
        difference = (_logits(again, images) - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        largest = max(largest, float(difference))
    if not largest <= TOLERANCE:
        raise UserError(
            f"{chosen.file} gives logits that are off by {largest:.1g} of the largest one, so it is not kept; export "
            "the weights with --format safetensors"
        )
    return largest


def _logits(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).detach().float()


def _about(network: TrainedNetwork, format_name: str, chosen: Format) -> dict[str, Any]:
    """The content of `config.json`, from which `wdro_train.load` builds the network again."""
    threat = network.threat
    figures = network.figures
    if figures is not None:  # its folders are of this machine
        command = command_for_others(figures.command)
        figures = replace(figures, source=Path(figures.source).name, command=command)
    return {
        "library": "wdro_train",
        "version": package_version("wdro-train"),
        "format": format_name,
        "file": chosen.file,
        "input": {"name": "images", "type": "float32", "shape": ["batch", *network.shape], "range": [0, 1]},
        "output": {"name": "logits", "type": "float32", "shape": ["batch", len(network.classes)]},
        "classes": list(network.classes),
        "shape": list(network.shape),
        "dataset": network.dataset,
        "command": command_for_others(network.command),
        "threat": {"p": threat.p, "norm": threat.norm, "delta": threat.delta},
        "figures": None if figures is None else figures.as_dict(),
        # Weights that the training began with are in the file, and where they lay concerns nobody else.
        "model": network.model | ({"weights": None} if "weights" in network.model else {}),
    }


def main() -> None:
    """Run the command."""
    parser = command_line.parser("export", __doc__)
    parser.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="Folder of a run, or a checkpoint. By default the newest run."
    )
    parser.add_argument(
        "--format", required=True, choices=list(FORMATS), help="The formats state_dict and safetensors hold weights, "
        "onnx and torch_export a program that runs without this package."
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="By default export/FORMAT in the run's folder.")
    parser.add_argument(
        "--report", type=Path, help="A report.json of evaluate.py whose figures go into the model card. By default the "
        "newest one under runs/evaluate that is about this checkpoint, or else what the run measured at its end."
    )  # fmt: skip
    parser.add_argument("--push-to-hub", metavar="REPO", type=hub.repository, help="Upload it, such as me/my_network.")
    parser.add_argument("--private", action="store_true", help="Make a new repository of the hub a private one.")
    parser.add_argument(
        "--allow", type=lambda text: frozenset(filter(None, text.split(","))), default=frozenset(), metavar="NAMES",
        help="The checkpoint may use these constructors of yours, such as my_package.models.mlp."
    )  # fmt: skip
    _run(parser.parse_args())


def _run(given: argparse.Namespace) -> None:
    checkpoint = checkpoint_of(given.run or newest_checkpoint())
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    out = given.out or folder / "export" / given.format
    refuse_existing(out)
    FORMATS[given.format].require()
    if given.push_to_hub is not None:
        hub.require()
    report = given.report or newest_report(checkpoint)
    network = load(checkpoint, report=report, allowed=given.allow)
    difference = export(network, given.format, out)
    print(f"network  {network.name} of {checkpoint}")
    print(f"figures  {'none: judge it with evaluate.py' if network.figures is None else network.figures.source}")
    print(f"checked  logits of the file and of the network differ by {difference:.1g} of the largest")
    print(f"export   {out}")
    if given.push_to_hub is not None:
        print(f"hub      {hub.push(out, given.push_to_hub, private=given.private)}")


if __name__ == "__main__":
    command_line.run(main, default_float32=True)

"""The model card of an exported network: what it is, what was measured of it and how, and how it is opened.

A card is `README.md` with a head in YAML that the Hugging Face hub reads. Every figure in it says what kind of bound it
is, on which images, and with which effort it was found. Lower bounds are rounded down and upper bounds up. Names and
commands may come from files of others, and stand in it as text: they can neither begin a heading nor draw an image.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from wdro_train.config.constructors import CONSTRUCTORS
from wdro_train.evaluation.network_figures import Figures
from wdro_train.evaluation.report.fields import at_least, at_most, percent, short
from wdro_train.evaluation.trained import TrainedNetwork
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.tables import rounded_down, rounded_up

CARD_FILE = "README.md"
# An absolute path, of which a command has one after a space, a quote, or an equals sign; in `8/255` there is none.
_PATH = re.compile(r"(?<![\w.~:/\\-])(?:file:/{2})?(?:~|[A-Za-z]:)?[\\/][^\s'\"=,\[\]{}]*")
_MARKS = re.compile(r"[\\`<>\[\]|]")  # of Markdown: the start of HTML, of links and images, and of a table's next cell
_PROGRAMS = {
    "onnx": 'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\n'
    '(logits,) = session.run(["logits"], {"images": images})  # a NumPy array of float32',
    "torch_export": 'import torch\n\nnetwork = torch.export.load("model.pt2").module()\nlogits = network(images)',
}


class _Row(NamedTuple):
    """A figure: its name, its value as a share and as it is printed, and what it means."""

    name: str
    value: float
    share: float
    printed: str
    meaning: str


def card(network: TrainedNetwork, format_name: str) -> str:
    """The text of the card.

    Args:
        network: What is exported.
        format_name: `state_dict`, `safetensors`, `onnx` or `torch_export`.
    """
    threat, figures = network.threat, network.figures
    title = f"{network.name} for {network.dataset}, {_named(threat)}"
    size = f"[B, {', '.join(map(str, network.shape))}]"
    parts = [
        f"---\n{OmegaConf.to_yaml(OmegaConf.create(_head(network, title, format_name)))}---\n\n# {_text(title)}",
        f"An image classifier that was trained for the threat *{_named(threat)}*: an adversary may move the whole "
        f"distribution of the images by {short(threat.delta)} in the Wasserstein distance of order {short(threat.p)} "
        f"whose ground norm is l_{short(threat.norm)}, pixels being in [0, 1].",
        f"It maps images {size} in [0, 1], float32, to logits [B, {len(network.classes)}]; the normalisation is "
        f"inside. The classes, in the order of the logits, are {_listed(network.classes)}.",
        "## What was measured",
        _measured(figures),
        "## How it was trained",
        f"```console\n$ {_typed(network.command)}\n```"
        if network.command
        else "The command was not recorded with these weights.",
        "## How to open it",
        _opened(network, format_name),
        "## What the figures do not say",
        "They are about the images named above and about others only as far as these are a sample of them; "
        "`evaluate.py` gives bands for that. They say nothing of another norm, a larger radius, or changes of images "
        "that are no small perturbations. Written by [wdro_train](https://arxiv.org/abs/2306.09844).",
    ]
    return "\n\n".join(parts) + "\n"


def _head(network: TrainedNetwork, title: str, format_name: str) -> dict[str, Any]:
    """What the hub reads: its own keys, and the figures as shares."""
    head: dict[str, Any] = {
        "library_name": "wdro_train",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", "distributional-robustness", "wasserstein", format_name],
    }
    figures = network.figures
    if figures is None:
        return head
    metrics = [{"type": "accuracy", "name": row.name, "value": row.share} for row in _rows(figures)]
    dataset = {"name": network.dataset, "type": re.sub(r"\W+", "_", network.dataset).lower(), "split": figures.split}
    result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}
    return head | {"model-index": [{"name": title, "results": [result]}]}


def _measured(figures: Figures | None) -> str:
    """The table of the figures, and how they were found."""
    if figures is None:
        return "Nothing was recorded with these weights. Judge them with `evaluate.py` before you rely on them."
    images = "an unrecorded number of" if figures.images is None else f"{figures.images:,}"
    lines = [
        f"On {images} images of the split `{_text(figures.split)}`; ball: {_named(figures.threat)}.",
        "",
        "| figure | value | what it is |",
        "|---|---|---|",
        *(f"| {row.name} | {row.printed} | {row.meaning} |" for row in _rows(figures)),
        "",
        f"Effort of the attack: {_text(figures.effort or 'not recorded')}. Seed: {_text(figures.seed)}. Measured by "
        f"`{_typed(figures.command)}`.",
    ]
    if figures.worst_case is None:
        lines.append("The worst case was not measured, and lies below what the validation attack leaves.")
    if figures.certified is None:
        lines.append("Nothing is certified: how far below the attack's figures the truth lies, no attack can say.")
    return "\n".join(lines)


def _rows(figures: Figures) -> list[_Row]:
    """What was measured, lower bounds rounded down and upper bounds up."""
    ball = _named(figures.threat)
    rows = []
    if figures.clean is not None:
        share = round(figures.clean, 4)
        rows.append(_Row("clean accuracy", figures.clean, share, percent(figures.clean), "on the images as they are"))
    for name, value, meaning in (
        (
            "adversarial accuracy",
            figures.adversarial,
            "upper bound on what is left: the validation attack of training, each batch a distribution of its own",
        ),
        (
            "worst-case accuracy",
            figures.worst_case,
            "upper bound on what is left, all images as one distribution: the nearest mistakes that the attack found",
        ),
    ):
        if value is not None:
            share = float(rounded_up(value, 4))
            # The hub shows names without the meanings, and a bound must not pass there for the truth.
            rows.append(_Row(f"{name} (attack, upper bound), {ball}", value, share, at_most(value), meaning))
    if figures.certified is not None:
        meaning = f"lower bound on what is left, whatever the attack ({_text(figures.certificate)})"
        share = float(rounded_down(figures.certified, 4))
        name = f"certified accuracy (lower bound), {ball}"
        rows.append(_Row(name, figures.certified, share, at_least(figures.certified), meaning))
    return rows


def _named(ball: WassersteinBall) -> str:
    """A ball in a few characters: `W_2 0.1 in l_inf`."""
    return f"W_{ball.p:g} {short(ball.delta)} in l_{ball.norm:g}"


def command_for_others(typed: str) -> str:
    """A command without the folders of this machine, whose names tell who its user is: of absolute paths the last part.

    Args:
        typed: As recorded.

    >>> command_for_others("/opt/code/train.py data.root=/home/me/pets/ attack.delta=8/255 ckpt_path=runs/a/best.ckpt")
    'train.py data.root=pets attack.delta=8/255 ckpt_path=runs/a/best.ckpt'
    """
    return _PATH.sub(lambda found: re.split(r"[\\/]", found[0].rstrip("\\/"))[-1], typed)


def _typed(command: str) -> str:
    """A command as one types it, on one line; backticks would end its place in the card."""
    text = " ".join(command_for_others(command).split()).replace("`", "'")
    first, _, rest = text.partition(" ")
    program = re.split(r"[\\/]", first)[-1]
    return f"python {program} {rest}".strip() if program.endswith(".py") else f"{program} {rest}".strip()


def _text(value: object) -> str:
    """Words on one line, in which nothing is a mark of Markdown."""
    return _MARKS.sub(r"\\\g<0>", " ".join(str(value).split()))


def _opened(network: TrainedNetwork, format_name: str) -> str:
    """How a file of this format is opened, and what else is needed for it."""
    if format_name in _PROGRAMS:
        return f"```python\n{_PROGRAMS[format_name]}\n```"
    target = str(network.model["_target_"])
    own = target not in CONSTRUCTORS["model"]
    allowed = f', allowed={{"{_code(target)}"}}' if own else ""
    lines = [f'network = wdro_train.load("path/of/this/folder"{allowed})', "logits = network(images)"]
    needed = (
        f" It is made by `{_code(target)}`, which is not part of wdro_train and has to be importable." if own else ""
    )
    return (
        "```python\nimport wdro_train\n\n" + "\n".join(lines) + "\n```\n\n"
        "The file holds weights alone: the architecture and the normalisation before it are in `config.json`." + needed
    )


def _code(name: str) -> str:
    """A dotted name, without what could end its place in the card."""
    return re.sub(r"[^\w.]", "_", name)


def _listed(classes: tuple[str, ...]) -> str:
    """Names of classes, the first twenty of them."""
    shown = 20
    more = f" and {len(classes) - shown} more (in `config.json`)" if len(classes) > shown else ""
    return ", ".join(map(_text, classes[:shown])) + more

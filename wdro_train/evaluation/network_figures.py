"""What a run or a report says of a network in a few numbers: clean, adversarial, worst-case and certified accuracy.

Figures are read from files that were written beside the network. They are taken for it only if the file says that they
are of this very network: the epoch of its checkpoint, or its path and a time after the checkpoint was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from wdro_train.config.run_folders import METRICS_FILE, REPORT_FILE
from wdro_train.evaluation.report import search
from wdro_train.theory.ball import WassersteinBall
from wdro_train.utils.errors import UserError
from wdro_train.utils.plain_values import shown

REPORTS = "runs/evaluate"
"""Where `evaluate.py` writes, from the folder in which it is called."""
DAMAGED = (LookupError, TypeError, ValueError, AttributeError)
"""What reading a file of another form raises."""
_SHARES = ("clean", "adversarial", "worst_case", "certified")
_EFFORT = ("loss", "steps", "restarts", "targets")  # arguments of an attack that say how hard it has tried


@dataclass(frozen=True)
class Figures:
    """Accuracies of a network in one ball, as shares of the images; None for what was not measured.

    Attributes:
        threat: The ball in which the network was judged.
        split: The images: `test` or `val`.
        images: Number of images; None where the file does not say.
        clean: Accuracy on the images as they are.
        adversarial: What the validation attack of training leaves, each batch a distribution of its own: an upper bound
            on the accuracy left in the ball.
        worst_case: What the knapsack over an attack's distances leaves, the whole set as one distribution: an upper
            bound that is never above `adversarial` under the same attack.
        certified: What the knapsack over certified radii leaves: a lower bound.
        effort: Which attack found the distances (or the images of `adversarial`), and how hard it tried.
        certificate: Which certificate gave the radii, and its level of confidence where that is below 1.
        seed: Of the run or the evaluation.
        command: What was typed to measure them.
        source: The file that they are from.

    Raises:
        UserError: An accuracy that is no number from 0 to 1, or a number of images that is none.
    """

    threat: WassersteinBall
    split: str
    images: int | None = None
    clean: float | None = None
    adversarial: float | None = None
    worst_case: float | None = None
    certified: float | None = None
    effort: str | None = None
    certificate: str | None = None
    seed: int | None = None
    command: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse what no measurement gives: a file may be damaged, and its figures go into a card for others."""
        for key in _SHARES:
            share = getattr(self, key)
            if share is not None and not (type(share) in (int, float) and 0 <= share <= 1):
                raise UserError(f"{self._from} {key}={shown(share)}, which is no share of images; measure it again")
        if self.images is not None and not (type(self.images) is int and self.images > 0):
            raise UserError(f"{self._from} images={shown(self.images)}, which is no number of images; measure it again")

    @property
    def _from(self) -> str:
        return f"{self.source or 'a file of figures'} has"

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data, which `from_dict` reads."""
        ball = {"p": self.threat.p, "norm": self.threat.norm, "delta": self.threat.delta}
        return {key: ball if key == "threat" else getattr(self, key) for key in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Figures:
        """Figures from plain data; keys of later versions are left out.

        Args:
            content: From `as_dict`, possibly through JSON.
        """
        known = {key: content[key] for key in cls.__dataclass_fields__ if key in content}
        return cls(**known | {"threat": WassersteinBall(**{k: content["threat"][k] for k in ("p", "norm", "delta")})})


def figures_of_run(run: Path, checkpoint: str, epoch: Any, config: Mapping[str, Any]) -> Figures | None:
    """The figures of `metrics.json`, of the test set if the run judged it, or else of the validation set.

    Args:
        run: The run's folder.
        checkpoint: Name of the checkpoint's file.
        epoch: Its epoch, from 0.
        config: Its training configuration.

    Returns:
        None if there is no such file, or it is about another epoch or another checkpoint.

    Raises:
        UserError: The file is about this network, and is damaged.
    """
    content = _read(run / METRICS_FILE)
    if content is None or content.get("epoch") != epoch or Path(str(content.get("checkpoint"))).name != checkpoint:
        return None
    split = "test" if content.get("test") else "val"
    values, adversary = content[split], (config.get("callbacks") or {}).get("adversary") or {}
    worst = values.get("worst_acc")
    images = content.get("images") or {}
    named = adversary.get("certificate")
    told = content.get("effort")
    judged_by = adversary.get("val_attack" if worst is None else "distances")
    return Figures(
        threat=WassersteinBall(**content["threat"]),
        split=split,
        images=images.get(split),
        clean=values.get("clean_acc"),
        adversarial=values.get("adv_acc"),
        worst_case=worst,
        certified=values.get("certified_acc"),
        effort=described(judged_by) if split == "val" or told is None else told.removeprefix("worst_acc: "),
        certificate=None if named is None else str(named if isinstance(named, str) else described(named)),
        seed=content.get("seed"),
        command=str(content.get("command", "")),
        source=str(run / METRICS_FILE),
    )


def figures_of_report(report: str | Path, checkpoint: Path) -> Figures:
    """The figures of a network in a `report.json` of `evaluate.py`.

    Args:
        report: The file, or its folder.
        checkpoint: The network's checkpoint, which the report has to name, and which must not be younger than it.

    Raises:
        UserError: There is no such report, or it is not about this network.
    """
    file = Path(report) / REPORT_FILE if Path(report).is_dir() else Path(report)
    content = _read(file)
    if content is None or not {"models", "threat", "created"} <= content.keys():
        raise UserError(f"{file} is no report; give the {REPORT_FILE} that evaluate.py wrote, or its folder")
    model = next((one for one in content["models"] if _same(one["checkpoint"], checkpoint, file)), None)
    if model is None:
        judged = ", ".join(str(one["checkpoint"]) for one in content["models"])
        raise UserError(f"{file} is about {judged}; judge this network with evaluate.py ckpt_path={checkpoint}")
    if datetime.fromisoformat(content["created"]).timestamp() < int(checkpoint.stat().st_mtime):
        raise UserError(f"{file} is older than {checkpoint}; judge it again with evaluate.py ckpt_path={checkpoint}")
    sure, attack = model["certificate"], model["distances"]["attack"]
    level = "" if sure is None or sure["level"] == 1 else f", level {sure['level']:.4g}"
    found = model["interval"]["certified"]
    return Figures(
        threat=WassersteinBall(**content["threat"]),
        split=content["split"],
        images=model["images"],
        clean=model["clean_accuracy"],
        worst_case=model["interval"]["attacked"],
        certified=found,
        effort=f"{described(attack)}{search.effort(model)}",
        certificate=None if sure is None or found is None else f"{sure['method']}{level}",
        seed=content.get("seed"),
        command=content["command"],
        source=str(file),
    )


def newest_report(checkpoint: Path, root: str | Path = REPORTS) -> Path | None:
    """The newest report that is about a checkpoint; None if there is none.

    Args:
        checkpoint: The network.
        root: The folder under which reports are looked for.
    """
    for file in sorted(Path(root).glob(f"**/{REPORT_FILE}"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            figures_of_report(file, checkpoint)
        except (UserError, *DAMAGED):  # another network's, or of an earlier format
            continue
        return file
    return None


def described(node: Any) -> str | None:
    """An attack of a configuration in one line: its class, and how hard it tries.

    Args:
        node: The configuration; None for no attack.

    >>> described({"_target_": "wdro_train.attacks.MinimalDistance", "norm": "inf", "steps": 10})
    'MinimalDistance (steps 10)'
    """
    if not isinstance(node, Mapping):
        return None
    name = str(node.get("name") or node.get("_target_")).rpartition(".")[-1]
    parts = [f"{key} {node[key]}" for key in _EFFORT if node.get(key) is not None]
    parts += [text for part in node.get("attacks") or () if (text := described(part)) is not None]
    return f"{name} ({', '.join(parts)})" if parts else name


def _same(named: str, checkpoint: Path, report: Path) -> bool:
    """Whether a report means a checkpoint: its path is absolute, or begins where `evaluate.py` was called.

    It writes to `runs/evaluate/` there, so of a report elsewhere only an absolute path, or one from here, is known.
    """
    folders = [Path(), *report.resolve().parents]
    return any((folder / named).resolve() == checkpoint.resolve() for folder in folders)


def _read(file: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is none to read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None

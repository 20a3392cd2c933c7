"""Which evaluations the table of other authors' networks consists of, and which of them were made before."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import attack_mode
from wdro_train.config.run_folders import REPORT_FILE
from wdro_train.evaluation.array_batches import ArrayBatches
from wdro_train.evaluation.networks import load_arrays, network_trained_elsewhere
from wdro_train.metrics import CleanAccuracy
from wdro_train.tools.loading import BATCH_SIZE
from wdro_train.tools.network_arguments import composed
from wdro_train.tools.published_networks import PublishedNetwork
from wdro_train.utils.errors import UserError
from wdro_train.utils.numbers import parse_number
from wdro_train.utils.versions import package_version

SETTINGS_FILE = "third_party.json"


@dataclass(frozen=True)
class Job:
    """One evaluation of one network.

    Attributes:
        network: What is published about it.
        folder: Where its report goes.
        keys: Of `evaluate.py`.
        settings: What the figures depend on: the keys without the folders of one machine, checksums of the files, and
            the version of this package.
    """

    network: PublishedNetwork
    folder: Path
    keys: tuple[str, ...]
    settings: dict[str, Any]

    @property
    def is_done(self) -> bool:
        """Whether it was judged with these settings.

        Raises:
            UserError: It was judged with others.
        """
        if not (self.folder / REPORT_FILE).is_file():
            return False
        try:
            before = json.loads((self.folder / SETTINGS_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            before = {}
        changed = [key for key in {**self.settings, **before} if before.get(key) != self.settings.get(key)]
        if changed:
            raise UserError(
                f"{self.folder} holds a report that was made with other settings ({', '.join(sorted(changed))}); "
                "repeat them, or give another --out"
            )
        return True

    def clean_of_all(self) -> float | None:
        """Clean accuracy on all images that the published one is about; None where there is none, or they are others.

        It takes one forward pass an image, so that it is compared whatever few images the evaluation is about.
        """
        images = self.network.images
        if not images.original or all(figure.kind != "clean" for figure in self.network.figures):
            return None
        network = network_trained_elsewhere(composed(list(self.keys)))
        arrays = load_arrays(network.config, "test")
        if len(arrays.labels) != images.number:
            return None
        metric = CleanAccuracy()
        with attack_mode(network.model), torch.no_grad():
            for x, y in ArrayBatches(arrays, BATCH_SIZE):
                metric.update(forward(network.model, x), y)
        return float(metric.hits) / float(metric.total)


def possible(network: PublishedNetwork, given: argparse.Namespace) -> Job | None:
    """The evaluation of a network; None, with the reason in a sentence, where a file is missing or does not fit.

    Args:
        network: What is published about it.
        given: The command line of `third_party`.
    """
    job = None
    try:
        job = _job(network, given)
        cfg = composed(list(job.keys))
        load_arrays(network_trained_elsewhere(cfg).config, "test", 1)
    except (UserError, OSError) as error:
        print(f"{network.name} is left out: {error}")
        return None
    if (found := job.settings["weights"]) != network.sha256:
        print(f"{network.file} is another file than the published one (sha256 {found}); it is judged all the same")
    return job


def _job(network: PublishedNetwork, given: argparse.Namespace) -> Job:
    radius = parse_number(network.radius, "radius")
    method = given.certificate or network.certificate
    own = ["attack.p=inf", "attack.norm=inf", f"attack.delta={network.radius}", "curve.p=[1,2,inf]", "first_order=none"]
    own += [*network.model, *network.images.keys, f"certificate.method={method}", f"distances.effort={given.effort}"]
    own += [f"certificate.radii=[{radius / 2!r},{network.radius}]"] if given.at_the_radii else []
    own += [f"certificate.budget={given.budget}"] if method == "exact" else []
    own += [] if given.limit is None else [f"limit={given.limit}"]
    keys, digests = ["model=own", f"model.weights={_there(given.folder / network.file)}"], {}
    for key in own:
        name, _, value = key.partition("=")
        if name in ("data.images", "data.labels"):
            digests[name] = _sha256(_there(given.folder / value))
            key = f"{name}={given.folder / value}"
        keys.append(key)
    root = getattr(given, network.images.root) if network.images.root else None
    keys += [] if root is None else [f"data.root={root}"]
    settings = {"weights": _sha256(given.folder / network.file), **digests, "version": package_version("wdro-train")}
    settings |= {name: value for name, _, value in (key.partition("=") for key in own)} | digests
    parts = [
        network.name,
        method,
        *(["radii"] if given.at_the_radii else []),
        *([str(given.limit)] if given.limit else []),
    ]
    return Job(network, given.out / "runs" / "_".join(parts), tuple(keys), settings)


def _there(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"there is no {path}")
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

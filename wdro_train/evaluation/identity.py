"""Everything that the numbers of an evaluation depend on, beside its images, as plain data.

Finished pieces are used again only by an evaluation of the same identity: the same network, computing with the same
code, under the same settings. The images and labels are not part of it, as each piece carries a digest of its own
batch.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wdro_train.attacks.search_network import PLAIN, SearchArithmetic
from wdro_train.evaluation.describe import describe
from wdro_train.evaluation.digests import file_digest
from wdro_train.utils.versions import git_revision, package_version

_PACKAGE = Path(__file__).parents[1]


def identity(
    model: nn.Module, *, seed: int, device: torch.device, arithmetic: SearchArithmetic = PLAIN
) -> dict[str, Any]:
    """Everything that all pieces of an evaluation depend on, beside the images and the settings of their stage.

    Args:
        model: The network that is judged, with everything around it (`ExpectedLogits`, say).
        seed: Seeds the generators of the batches.
        device: Where it is computed; kinds of devices round differently.
        arithmetic: In which searches compute.

    Returns:
        Plain data.
    """
    computed = {"device": device.type, "search": arithmetic.described()}
    return {"network": describe(model), "code": code_identity(), "seed": seed, **computed}


def code_identity(package: Path = _PACKAGE) -> dict[str, Any]:
    """The code that computes: version, revision and source files of this package, and the version of torch.

    Args:
        package: Folder of the source files; they may have been changed since the revision.

    Returns:
        Plain data.
    """
    sources = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        sources.update(f"{file.relative_to(package)}\0".encode() + file_digest(file).encode())
    return {
        "version": package_version("wdro-train"),
        "revision": git_revision(),
        "sources": sources.hexdigest(),
        "torch": torch.__version__,
    }

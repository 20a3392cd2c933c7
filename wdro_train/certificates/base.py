"""What a certificate is: a map from a batch of images to radii within which nothing can flip them, and its result.

A certified radius r_i is a lower bound on d_i, the distance from image i to its nearest misclassified point. In the
place of distances in `RobustnessCurve` certified radii give a lower bound on worst-case accuracy, for every radius and
every Wasserstein order (theory, sections 5 and 11).

To add a certificate, write a class with the attribute and the call of `Certificate`, in a file of its own, export it in
`wdro_train.certificates`, and let `wdro_train.evaluation.certified_curve.make_certificate` make it by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

THE_NETWORK = "the network itself"
"""What `Radii.about` says where the certificate speaks of the classifier that is attacked, too."""


@dataclass(frozen=True)
class Radii:
    """Certified radii of a batch.

    Attributes:
        radii: r_i such that no x' in [0, 1]^n with ||x' - x_i||_s < r_i is misclassified; float64, shape [N]; 0 where
            the image is misclassified or nothing could be certified, inf where every image of the box is certified.
        correct: The images that are classified correctly to begin with, boolean, shape [N].
        norm: Order s of the ground norm.
        level: Probability with which all radii hold simultaneously; 1 for a deterministic certificate.
        about: The classifier that the certificate speaks of, in words for a report.
    """

    radii: Tensor
    correct: Tensor
    norm: float
    level: float
    about: str


class Certificate(Protocol):
    """A map from a batch to certified radii.

    The contract:

    - The classifier that `Radii.about` names has no misclassified point nearer than the radius, also as computed in
      float32; where chance is involved, this holds for all images of the set at once with probability `Radii.level`.
    - Misclassified images have radius 0.
    - The network's modes, buffers and gradients are as before afterwards (`batch_under_attack` sees to it), and the
      arithmetic inside is that of IEEE 754 (`full_float32`), whatever precision the process computes in otherwise.
    - A network that the certificate does not cover is refused with a `UserError` that names the layer or the reason.

    Attributes:
        norm: Order s of the ground norm that the radii are in.
    """

    norm: float

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Radii:
        """Certify a batch.

        Args:
            model: Maps images to logits.
            x: Images in [0, 1], shape [N, C, H, W].
            y: Labels, shape [N].
            generator: Source of noise; None for the default one.
        """
        ...

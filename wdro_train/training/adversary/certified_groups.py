"""Certify the images of an evaluation set many at a time, however small the batches are in which they come."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wdro_train.certificates import Certificate
from wdro_train.certificates.reading import network_of
from wdro_train.training.adversary.evidence import CertifiedEvidence
from wdro_train.training.adversary.random_numbers import batch_generator
from wdro_train.training.batches import StepBatch

# Images of a group. A certificate reads the network anew for each call and searches radii in some ten evaluations,
# whose cost hardly depends on the number of images while it is small: with groups, interval bounds of the default
# recipe's validation set (288 digits in batches of 32) take 0.45 instead of 2.0 seconds of an epoch of 3.6.
GROUP = 512


class CertifiedGroups:
    """Holds images until there are enough of them to certify.

    Args:
        certificate: Gives the radii.
        seed: Seeds its random numbers, if it has any.
        size: Images of a group, at least.
    """

    def __init__(self, certificate: Certificate, seed: int, size: int = GROUP) -> None:
        self.certificate, self.seed, self.size = certificate, seed, size
        self._held: list[tuple[StepBatch, Tensor]] = []

    def add(self, model: nn.Module, batch: StepBatch, clean_logits: Tensor) -> CertifiedEvidence | None:
        """Hold a batch; the evidence on all that are held if they are enough, or on those of another image size.

        Args:
            model: Maps images in [0, 1] to logits, and stays as it is until the last group is certified.
            batch: This rank's share of the global batch.
            clean_logits: Of its images, shape [B, m].
        """
        other = bool(self._held) and self._held[0][0].x.shape[1:] != batch.x.shape[1:]
        done = self.rest(model) if other else None
        self._held.append((batch, clean_logits))
        enough = sum(len(held.x) for held, _ in self._held) >= self.size
        return self.rest(model) if enough and done is None else done

    def rest(self, model: nn.Module) -> CertifiedEvidence | None:
        """The evidence on the images that are held; None if there are none.

        Args:
            model: As in `add`.
        """
        held, self._held = self._held, []
        if not held:
            return None
        x, y, weight = (torch.cat([getattr(batch, part) for batch, _ in held]) for part in ("x", "y", "weight"))
        found = self.certificate(network_of(model), x, y, generator=batch_generator(self.seed, held[0][0]))
        return CertifiedEvidence(torch.cat([logits for _, logits in held]), y, weight, found.radii)

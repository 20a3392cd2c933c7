"""Certificates in l_2 of networks whose layers have known Lipschitz constants: one forward pass certifies an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wdro_train.attacks.gradient import forward
from wdro_train.attacks.mode import batch_under_attack
from wdro_train.attacks.network_check import check_logits
from wdro_train.certificates.base import THE_NETWORK, Radii
from wdro_train.certificates.lipschitz_network import LipschitzNetwork
from wdro_train.certificates.reading import require_readable
from wdro_train.theory.ground_norm import GroundNorm
from wdro_train.theory.losses import correct
from wdro_train.utils.errors import UserError
from wdro_train.utils.float32_precision import full_float32


class LipschitzCertificate:
    """Radii r = min over j != y of (z_y - z_j) / (L ||w_y - w_j||_2), with L the constant of the features.

    Theory, section 11; Tsuzuku et al. 2018 (arXiv 1802.04034). L is the product of the layers' constants, each an upper
    bound computed in float64, never an estimate from below; the last layer takes part pair by pair. From the margin is
    taken what float32 arithmetic may be off by anywhere within the radius: a proven bound for IEEE 754 with sums in any
    order, layer by layer (`LipschitzNetwork.margins`), so the certificate is about the float32 network as it is run.

    Args:
        norm: Ground norm; only 2.
        batch_size: Images at a time.
    """

    def __init__(self, *, norm: float | str = 2, batch_size: int = 512) -> None:
        self.norm = GroundNorm(norm).order
        if self.norm != 2:
            raise UserError(
                f"the lipschitz certificate is in the l_2 norm, not in l_{self.norm:g}, where it would be worth next "
                "to nothing; choose attack.norm=2, or another certificate"
            )
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: choose at least 1")
        self.batch_size = int(batch_size)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Radii:
        """Certify a batch; see `Certificate`. Nothing is random here.

        Raises:
            UserError: A layer of which no constant is known, named, or a network that computes something else than its
                layers one after another.
        """
        require_readable(model)
        full = torch.autocast(x.device.type, enabled=False)
        with batch_under_attack(model, x, y) as (x, y, labels), full_float32(), full, torch.no_grad():
            logits = forward(model, x, self.batch_size).float()
            check_logits(model, x, logits, labels)
            network = LipschitzNetwork(model, x)
            pairs = zip(torch.split(x, self.batch_size), torch.split(y, self.batch_size), strict=True)
            parts = [network.margins(images, labels) for images, labels in pairs]
            true, uncertainty, radii = (torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS)
            gap = (logits.double() - true).abs()
            if not bool((gap <= uncertainty).all()):
                raise UserError(
                    f"the network's layers, one after another, miss its logits by {float(gap.max()):g}, more than "
                    "float32 rounding can; certify a float32 network whose forward pass is that of its layers"
                )
            robust = correct(logits, y)
            radii = torch.where(robust, radii.clamp(min=0), 0.0)
            radii = radii.masked_fill(radii >= GroundNorm(2).diameter(x), torch.inf)
            return Radii(radii, robust, self.norm, 1.0, THE_NETWORK)


_FIELDS = ("logits", "uncertainty", "radii")

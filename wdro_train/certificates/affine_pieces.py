"""A feed-forward ReLU network as the affine maps between its ReLUs, applied to many maps at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wdro_train.certificates.reading import PASSING, computes, copied, described, flattened
from wdro_train.models.layers import Normalize
from wdro_train.utils.errors import UserError

_AFFINE = (
    *(nn.Flatten, nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.BatchNorm1d, nn.BatchNorm2d, Normalize),
    *PASSING,
)


class AffinePieces:
    """The network z -> piece_L(relu(... relu(piece_1(z)))), in float64 on the CPU.

    Args:
        model: `nn.Sequential`, nested at will, of affine layers and ReLUs.

    Raises:
        UserError: A layer of another kind, named.
    """

    def __init__(self, model: nn.Module) -> None:
        self.pieces: list[nn.Sequential] = [nn.Sequential()]
        for name, layer in flattened(model):
            if computes(layer, nn.ReLU):
                self.pieces.append(nn.Sequential())
            elif any(computes(layer, kind) for kind in _AFFINE):
                self.pieces[-1].append(_bare(layer))
            else:
                raise UserError(
                    f"{described(name, layer)} has no exact encoding; certificate.method=exact takes an "
                    "nn.Sequential of Linear, Conv2d, ReLU, Flatten, AvgPool2d, BatchNorm, Dropout, Identity and "
                    "Normalize, certificate.method=ibp other networks, too"
                )

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """The logits of the network as it was read, float64, shape [B, m].

        Args:
            x: Images, shape [B, C, H, W].
        """
        z = x.double().cpu()
        for piece in self.pieces[:-1]:
            z = piece(z).clamp(min=0)
        result: Tensor = self.pieces[-1](z)
        return result

    @torch.no_grad()
    def through(self, k: int, functions: Tensor) -> Tensor:
        """Affine functions of some variables, carried through a piece.

        Args:
            k: Number of the piece.
            functions: Every value of the piece's input as constant + <coefficients, variables>: the constants' map
                first, then the map of each variable's coefficients; shape [1 + variables, ...], float64.

        Returns:
            The same of the piece's output.
        """
        piece = self.pieces[k]
        carried: Tensor = piece(functions)
        offset = piece(torch.zeros_like(functions[:1]))
        return torch.cat([carried[:1], carried[1:] - offset])


def _bare(layer: nn.Module) -> nn.Module:
    """The layer in evaluation mode and float64, without the hooks of those who count its passes."""
    own = copied(layer, torch.float64).eval().cpu()
    for module in own.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return own

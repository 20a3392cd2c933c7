"""How far a function of bounded slope can move: Lipschitz constants in l_2, and the radii that they certify.

Features g with ||g(x) - g(x')||_2 <= L ||x - x'||_2 and logits z = W g + b give, for every rival j of the label y,
z_y - z_j >= 0 wherever ||x' - x||_2 <= (z_y(x) - z_j(x)) / (L ||w_y - w_j||_2) (theory, section 11; Tsuzuku et al.
2018, arXiv 1802.04034).

Constants are upper bounds that are proven, up to the rounding of float64: singular values come from a decomposition,
not from power iteration, which approaches them from below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Shape = tuple[int, ...]
Pair = tuple[int, int]

# Eigenvalues in float64 are off by about 1e-16 times the matrix's size; constants are enlarged by a thousand times the
# error of matrices of 10,000 rows.
_FLOAT64_ROUNDING = 1 + 1e-9


@dataclass(frozen=True)
class LipschitzBound:
    """What is known of one layer h -> f(h): how much it stretches, and how far float32 computes it from its true value.

    ||f(h) - f(h')||_2 <= constant ||h - h'||_2, and the value that float32 arithmetic gives is within
    relative ||h||_2 + absolute of f(h), in whichever order sums are taken.

    Attributes:
        constant: Lipschitz constant in l_2, >= 0.
        relative: Rounding error in units of the input's norm, >= 0.
        absolute: Rounding error whatever the input, >= 0.
    """

    constant: float
    relative: float = 0.0
    absolute: float = 0.0


@runtime_checkable
class KnownLipschitz(Protocol):
    """A layer whose Lipschitz constant is the same whatever its parameters are, because of how it is built.

    Such layers may be trained on their own certificate; a layer from elsewhere takes part if it has this method.
    """

    def lipschitz_bound(self, shape: Shape) -> LipschitzBound:
        """What is known of the layer as it is now.

        Args:
            shape: Of one input, without the batch.
        """
        ...


def matrix_norm(matrix: Tensor) -> float:
    """Largest singular value of a matrix, an upper bound of it up to the rounding of float64.

    Args:
        matrix: Shape [m, n].
    """
    matrix = matrix.detach().double()
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    largest = float(torch.linalg.eigvalsh(small @ small.T)[-1]) if small.numel() else 0.0
    return math.sqrt(max(largest, 0.0)) * _FLOAT64_ROUNDING


def magnitude_norm(matrix: Tensor) -> float:
    """Upper bound of the largest singular value of |A|, sqrt(largest row sum times largest column sum) (Schur's test).

    Args:
        matrix: A, shape [m, n].
    """
    size = matrix.detach().double().abs()
    return math.sqrt(float(size.sum(0).max()) * float(size.sum(1).max())) if size.numel() else 0.0


def convolution_norm(
    weight: Tensor,
    size: Pair,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> float:
    """Upper bound of the spectral norm of a convolution with zero padding, as an operator on images of one size.

    The padded image is a part of a torus, on which the convolution of stride 1 is diagonal in frequency (Sedghi, Gupta,
    Long 2019, arXiv 1805.10408): its norm is the largest singular value of the [out, in] matrix over all frequencies.
    Cutting outputs off or leaving some out, and setting inputs to 0, does not raise a norm. A stride s is handled as a
    convolution of stride 1 over the s^2 sub-lattices of the image, on which the bound is tighter.

    Args:
        weight: Shape [out, in / groups, kh, kw].
        size: Height and width of the images.
        stride: Of the convolution.
        padding: Zeros on each side.
        dilation: Of the kernel.
        groups: Of channels.
    """
    weight = weight.detach().double()
    out, inputs, *kernel = weight.shape
    extent = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    cells = [-(-extent[i] // stride[i]) for i in (0, 1)]
    spread = weight.new_zeros(out, inputs, cells[0] * stride[0], cells[1] * stride[1])
    spread[:, :, : extent[0] : dilation[0], : extent[1] : dilation[1]] = weight
    lattices = spread.view(out, inputs, cells[0], stride[0], cells[1], stride[1]).permute(0, 1, 3, 5, 2, 4)
    lattices = lattices.reshape(out, -1, cells[0], cells[1])
    torus = [-(-(size[i] + 2 * padding[i] + extent[i]) // stride[i]) for i in (0, 1)]
    spectrum = torch.fft.fft2(lattices, s=torus).permute(2, 3, 0, 1)
    largest = 0.0
    for part in spectrum.chunk(groups, dim=2):
        narrow = part if part.shape[-2] <= part.shape[-1] else part.mH
        largest = max(largest, float(torch.linalg.eigvalsh(narrow @ narrow.mH)[..., -1].max()))
    return math.sqrt(max(largest, 0.0)) * _FLOAT64_ROUNDING


def rival_radii(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """How far features have to move until a rival draws level: min over j != y of (z_y - z_j) / ||w_y - w_j||_2.

    Args:
        logits: z = W g + b, shape [B, m], m >= 2.
        labels: Shape [B].
        rows: W, shape [m, F].

    Returns:
        Shape [B], in units of the features; negative where the label is not the largest logit, and there the distance
        to the farthest rival's surface. Divided by the features' Lipschitz constant it is the certified radius, signed.
    """
    labels = labels.long()
    lengths = torch.linalg.vector_norm(rows[:, None] - rows, dim=2)[labels]
    own = torch.zeros_like(logits, dtype=torch.bool).scatter(1, labels[:, None], True)
    gaps = logits.gather(1, labels[:, None]) - logits
    same = ~own & (lengths == 0)  # equal rows: the gap is the same everywhere
    distances = gaps / lengths.masked_fill(own | same, 1.0)
    distances = torch.where(same, torch.where(gaps > 0, torch.inf, -torch.inf), distances)
    return distances.masked_fill(own, torch.inf).amin(1)

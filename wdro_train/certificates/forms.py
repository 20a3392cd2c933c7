"""Affine functions of a layer's values and their lower bounds, which linear relaxation carries backwards.

A form holds M functions for each of L windows of a map [C, H, W]. Windows are laid out like those of a convolution
(kernel, stride, padding), so functions of few pixels, such as the neurons of a convolution, stay small; one window
over the whole map is the dense case, and a flat layer of F values is a map [F, 1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from wdro_train.theory.box import free_gradient

Pair = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """Affine functions constant + <coefficients, window> of the windows of a map.

    Attributes:
        coefficients: Shape [B, L, M, C, k, k']; B or L may be 1 for what images or windows share. Zero where a
            window hangs over the edge of the map.
        constant: Shape [B, L, M], or broadcastable to it.
        stride: Distance of neighbouring windows.
        padding: How far the first window hangs over the edge.
    """

    coefficients: Tensor
    constant: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)

    @classmethod
    def both_signs(cls, channels: int, like: Tensor) -> Form:
        """Every value of a map and its negative, whose lower bounds are the map's bounds: M = 2 channels functions.

        Args:
            channels: Number of the map's channels.
            like: Gives type and device.
        """
        eye = torch.eye(channels, dtype=like.dtype, device=like.device)
        coefficients = torch.cat([eye, -eye]).view(1, 1, 2 * channels, channels, 1, 1)
        return cls(coefficients, coefficients.new_zeros(1, 1, 1))

    def rows(self, places: Tensor) -> Form:
        """Some of the functions, which all images share: for each image its own.

        Args:
            places: Numbers of functions, shape [B, M'].

        Returns:
            M' functions for each of B images; L = 1.
        """
        constant = self.constant.expand(1, 1, self.coefficients.shape[2])[0, 0]
        return replace(self, coefficients=self.coefficients[0, 0][places][:, None], constant=constant[places][:, None])

    def windows(self, values: Tensor) -> Tensor:
        """The windows of maps [B, C, H, W], with zeros past the edge; shape [B, L, C k k']."""
        kernel = tuple(self.coefficients.shape[-2:])
        if kernel == values.shape[-2:] and self.padding == (0, 0):
            return values.flatten(1)[:, None]
        return functional.unfold(values, kernel, stride=self.stride, padding=self.padding).transpose(1, 2)

    def at(self, values: Tensor) -> Tensor:
        """The functions' values at maps [B, C, H, W]; shape [B, L, M]."""
        return self.constant + _dot(self.coefficients.flatten(3), self.windows(values))

    def over_box(self, low: Tensor, high: Tensor) -> Tensor:
        """The functions' minima over low <= values <= high; shape [B, L, M]."""
        width = self.windows((high - low) / 2)
        return self.at((low + high) / 2) - _dot(self.coefficients.flatten(3).abs(), width)

    def over_ball(self, x: Tensor, radii: Tensor, dual: float) -> Tensor:
        """Lower bounds of the functions over ||x' - x||_s <= radius and x' in [0, 1]^n.

        f(x) - radius ||a_free||_*, with a_free the coefficients but for 0 where a pixel on the edge of the box would
        have to leave it to lower the function.

        Args:
            x: Images, shape [B, C, H, W].
            radii: Shape [B].
            dual: Exponent s' of the dual norm.

        Returns:
            Shape [B, L, M].
        """
        free = free_gradient(-self.coefficients.flatten(3), self.windows(x)[:, :, None])
        lengths: Tensor = torch.linalg.vector_norm(free, ord=dual, dim=-1)
        return self.at(x) - radii.to(x)[:, None, None] * lengths

    def through_relu(self, low: Tensor, high: Tensor) -> Form:
        """Lower bounds of the functions of relu(z), as a form of z, for low <= z <= high.

        relu(z) <= k (z - low) with k = high / (high - low), and relu(z) >= z or 0, whichever leaves the smaller
        area between the two lines (CROWN, Zhang et al. 2018); exact where the sign of z is known.

        Args:
            low: Shape [B, C, H, W].
            high: Same shape.
        """
        above = high.clamp(min=0) / (high.clamp(min=0) - low.clamp(max=0)).clamp(min=torch.finfo(low.dtype).tiny)
        below = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, (high > -low).to(low)))
        window = self.coefficients.shape[3:]
        below, above, kink = (
            self.windows(v).view(len(v), -1, *window) for v in (below, above, -above * low.clamp(max=0))
        )
        falling = self.coefficients.clamp(max=0)
        slopes = torch.where(self.coefficients > 0, below[:, :, None], above[:, :, None])
        constant = self.constant + _dot(flat(falling), flat(kink[:, :, None])[:, :, 0])
        return replace(self, coefficients=slopes.mul_(self.coefficients), constant=constant)

    def through_scale(self, scale: Tensor, shift: Tensor) -> Form:
        """The form of z, given this form of scale z + shift.

        Args:
            scale: Shape [C].
            shift: Shape [C].
        """
        constant = self.constant + (self.coefficients.sum((-2, -1)) @ shift)
        return replace(self, coefficients=self.coefficients * scale[:, None, None], constant=constant)

    def clipped(self, shape: tuple[int, int, int]) -> Form:
        """The form without the parts of its windows that hang over the edge of the map.

        Their coefficients are set to 0; where there is one window only, they are cut off.

        Args:
            shape: [C, H, W] of the map.
        """
        if self.padding == (0, 0):
            return self
        (_, height, width), (top, left) = shape, self.padding
        inside = self.coefficients[..., top : top + height, left : left + width]
        ones = self.windows(self.coefficients.new_ones(1, *shape))
        if ones.shape[1] == 1:
            return replace(self, coefficients=inside, padding=(0, 0))
        mask = ones.view(1, -1, 1, *self.coefficients.shape[3:])
        return replace(self, coefficients=self.coefficients * mask)


def flat(coefficients: Tensor) -> Tensor:
    """Shape [B, L, M, C, k, k'] as [B, L, M, k k' C]: no copy of what a convolution returns channels last."""
    return coefficients.movedim(3, -1).flatten(3)


def _dot(coefficients: Tensor, values: Tensor) -> Tensor:
    """[B, L, M, K] times [B, L, K], broadcasting; shape [B, L, M]."""
    product: Tensor = torch.einsum("blmk,blk->blm", coefficients, values)
    return product

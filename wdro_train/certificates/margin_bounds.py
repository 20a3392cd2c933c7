"""What bounds a network's margins over balls around images, and what all such bounds share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class MarginBounds(Protocol):
    """Lower bounds of a network's margins over balls around images."""

    def margins(self, x: Tensor, y: Tensor, radii: Tensor, enough: Tensor | None = None) -> Tensor:
        """Lower bounds of min over j != y of f_y - f_j over ||x' - x||_s <= radius, x' in [0, 1]^n.

        Args:
            x: Images in [0, 1], shape [B, ...].
            y: Labels, shape [B].
            radii: Shape [B].
            enough: A bound above this need not be improved, shape [B]; 0 if None.

        Returns:
            Shape [B], float64, in logit units.

        Raises:
            UserError: A part of the network without bounds, named.
        """
        ...


class DifferentiableBounds(Protocol):
    """Bounds that a network can be trained on."""

    def differences(self, x: Tensor, y: Tensor, radii: Tensor) -> Tensor:
        """Lower bounds of f_y - f_j for each class j, over the ball of `MarginBounds`.

        Args:
            x: Images in [0, 1], shape [B, ...].
            y: Labels, shape [B].
            radii: Shape [B].

        Returns:
            Shape [B, m], in logit units; 0 for j = y.

        Raises:
            UserError: A part of the network without bounds, named.
        """
        ...


def smallest(differences: Tensor, y: Tensor) -> Tensor:
    """The margin's bound: the least over the rivals j != y.

    Args:
        differences: Shape [B, m].
        y: Labels, shape [B].

    Returns:
        Shape [B].
    """
    margins: Tensor = differences.scatter(1, y[:, None], torch.inf).amin(1)
    return margins


def largest(errors: Tensor, y: Tensor) -> Tensor:
    """The most by which a margin can err: the largest error over the rivals j != y.

    Args:
        errors: Of f_y - f_j, not negative, shape [B, m].
        y: Labels, shape [B].

    Returns:
        Shape [B].
    """
    most: Tensor = errors.scatter(1, y[:, None], 0.0).amax(1)
    return most


def difference_rows(y: Tensor, classes: int, like: Tensor) -> Tensor:
    """The coefficients e_y - e_j of the logits for each class j; shape [m, B, m].

    Args:
        y: Labels, shape [B].
        classes: m.
        like: Gives type and device.
    """
    eye = torch.eye(classes, dtype=like.dtype, device=like.device)
    return functional.one_hot(y, classes).to(eye) - eye[:, None]

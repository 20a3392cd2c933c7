"""Lower bounds of a network's margins over balls around images, by linear relaxation of its ReLUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from wdro_train.certificates.forms import Form
from wdro_train.certificates.layers import Segment, segments
from wdro_train.theory.ground_norm import conjugate, per_image
from wdro_train.utils.errors import UserError


class BoundedNetwork(NamedTuple):
    """What a relaxation shows about a network over balls around B images.

    Attributes:
        boxes: Lower and upper bounds of the values before each ReLU, each of shape [B, C, H, W].
        margins: Lower bounds of f_y - f_j for every rival j != y, in the order of the classes, shape [B, classes - 1].
    """

    boxes: list[tuple[Tensor, Tensor]]
    margins: Tensor


class RelaxedNetwork:
    """A network as segments between ReLUs, from which lower bounds of its margins over balls are computed.

    Args:
        model: See `segments`.
        like: Images, whose shape is the network's input.
        dtype: Type to compute in.
        norm: Ground norm s of `margins`.
    """

    def __init__(self, model: nn.Module, like: Tensor, dtype: torch.dtype, norm: float = float("inf")) -> None:
        channels, height, width = like.shape[1:] if like.dim() == 4 else (like.shape[1:].numel(), 1, 1)
        self.segments: list[Segment] = segments(model, (channels, height, width), like.new_empty(0, dtype=dtype))
        self.shape, self.dtype, self.norm = (channels, height, width), dtype, norm
        classes, *flat = self.segments[-1].shape
        if flat != [1, 1]:
            raise UserError(f"the network ends in a map of shape {list(self.segments[-1].shape)}; end it in logits")
        self.classes = classes

    def margins(self, x: Tensor, y: Tensor, radii: Tensor, enough: Tensor | None = None) -> Tensor:
        """See `MarginBounds`."""
        return self.bounded(x, y, radii, self.norm).margins.amin(1).double()

    def bounded(self, x: Tensor, y: Tensor, radii: Tensor, norm: float) -> BoundedNetwork:
        """Bounds of the values before every ReLU, and of the margin against every rival, over the same balls.

        Args:
            x: Images in [0, 1], shape [B, ...].
            y: Labels, shape [B].
            radii: Shape [B].
            norm: Ground norm s.
        """
        x = x.to(self.dtype).view(-1, *self.shape)
        everywhere = self._region(x, radii.to(self.dtype), norm)
        boxes: list[tuple[Tensor, Tensor]] = []
        nearest_only = not bool(radii.any())  # at the image itself all bounds are exact
        for k, segment in enumerate(self.segments[:-1]):
            form = segment.pull_back(Form.both_signs(segment.shape[0], x))
            if k == 0:
                bounds = everywhere(form)
            elif nearest_only:
                bounds = self._nearest(k, form, boxes)
            elif segment.shape[1:] == (1, 1):
                bounds = self._lower_where_open(k, form, boxes, everywhere)
            else:
                bounds = self._lower(k, form, boxes, everywhere)
            low, minus_high = bounds.transpose(1, 2).reshape(len(x), -1, *segment.shape[1:]).chunk(2, dim=1)
            boxes.append((low, torch.maximum(low, -minus_high)))
        eye = torch.eye(self.classes, dtype=x.dtype, device=x.device)
        own = torch.nn.functional.one_hot(y, self.classes).bool()
        rivals = eye.expand(len(x), -1, -1)[~own].view(len(x), self.classes - 1, self.classes)
        coefficients = (own.to(eye)[:, None] - rivals)[:, None, :, :, None, None]
        form = self.segments[-1].pull_back(Form(coefficients, coefficients.new_zeros(1, 1, 1)))
        lower = self._nearest(len(boxes), form, boxes) if boxes and nearest_only else None
        lower = self._lower(len(boxes), form, boxes, everywhere) if lower is None else lower
        return BoundedNetwork(boxes, lower.flatten(1))

    def _lower(
        self, k: int, form: Form, boxes: list[tuple[Tensor, Tensor]], everywhere: Callable[[Form], Tensor]
    ) -> Tensor:
        """The better of two lower bounds of a form of segment k's input, shape [B, L, M].

        One from the box of the values before the nearest ReLU, and one from the images, by carrying the form back
        through all ReLUs.

        Args:
            k: Number of the segment.
            form: The affine functions to bound.
            boxes: Lower and upper bounds of the values before each ReLU below.
            everywhere: Bounds a form of the images, see `_region`.
        """
        if k == 0:
            return everywhere(form)
        return torch.maximum(self._nearest(k, form, boxes), self._carried(k, form, boxes, everywhere))

    def _lower_where_open(
        self, k: int, form: Form, boxes: list[tuple[Tensor, Tensor]], everywhere: Callable[[Form], Tensor]
    ) -> Tensor:
        """The lower bounds of `_lower` of flat values and their negatives, where it takes both to know the sign.

        A ReLU is the same whatever the bounds of its argument z are, once they tell the sign. Where the nearest box
        does not, first the bound of z or -z is improved that is the closer to telling it, then the other one of those
        that are left.

        Returns:
            Shape [B, 1, 2 F].
        """
        bounds = self._nearest(k, form, boxes)[:, 0]
        size = bounds.shape[1] // 2
        number = torch.arange(size, device=bounds.device)
        for turn in (0, 1):
            low, minus_high = bounds[:, :size], bounds[:, size:]
            is_open = (low < 0) & (minus_high < 0)
            if turn == 0:
                first = torch.where(low >= minus_high, number, number + size)
            order = is_open.to(torch.uint8).argsort(1, descending=True)[:, : int(is_open.sum(1).amax())]
            if not order.numel():
                break
            places = (first if turn == 0 else (first + size) % (2 * size)).gather(1, order)
            carried = self._carried(k, form.rows(places), boxes, everywhere)[:, 0]
            bounds = bounds.scatter(1, places, torch.maximum(bounds.gather(1, places), carried))
        return bounds[:, None]

    def _nearest(self, k: int, form: Form, boxes: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The lower bound of a form of segment k's input from the box of the values before the ReLU there."""
        low, high = boxes[k - 1]
        return form.over_box(low.clamp(min=0), high.clamp(min=0))

    def _carried(
        self, k: int, form: Form, boxes: list[tuple[Tensor, Tensor]], everywhere: Callable[[Form], Tensor]
    ) -> Tensor:
        """The lower bound of a form of segment k's input that comes from the images, shape [B, L, M]."""
        for segment, box in zip(self.segments[k - 1 :: -1], boxes[k - 1 :: -1], strict=True):
            form = segment.pull_back(form.through_relu(*box))
        return everywhere(form)

    def _region(self, x: Tensor, radii: Tensor, norm: float) -> Callable[[Form], Tensor]:
        """The function that bounds forms over all images within the radius: over their box, and over the ball."""
        dual = conjugate(norm)
        reach = per_image(radii, x)
        low, high = (x - reach).clamp(0, 1), (x + reach).clamp(0, 1)
        if norm == float("inf"):
            return lambda form: form.over_box(low, high)
        return lambda form: torch.maximum(form.over_box(low, high), form.over_ball(x, radii, dual))

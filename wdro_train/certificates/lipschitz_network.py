"""Networks as chains of layers of known Lipschitz constants that end in a linear layer: to certify, and to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.attacks.mode import attack_mode
from wdro_train.certificates.lipschitz_layers import layer_bound
from wdro_train.certificates.reading import copied, flattened
from wdro_train.models.lipschitz_layers import OrthogonalLinear
from wdro_train.theory.lipschitz import KnownLipschitz, LipschitzBound, rival_radii
from wdro_train.theory.rounding import accumulated
from wdro_train.utils.errors import UserError


@dataclass(frozen=True)
class Margins:
    """What is known of a batch's logits and of how far they can move.

    Attributes:
        logits: In float64, shape [B, m].
        uncertainty: How far the float32 logits of an image within reach may be from the true ones, shape [B, m].
        radii: Certified radii, signed, shape [B], float64.
    """

    logits: Tensor
    uncertainty: Tensor
    radii: Tensor


class LipschitzNetwork:
    """A network z = W g(x) + b, read as a chain of layers.

    Args:
        model: `nn.Sequential`, nested at will, in evaluation mode, with float32 parameters.
        x: Images, for the shapes of what the layers see, [B, ...].

    Raises:
        UserError: A layer of which no constant is known, named.

    Attributes:
        constant: Lipschitz constant L of the features g.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, x: Tensor) -> None:
        layers = list(flattened(model))
        exact = [layer for _, layer in flattened(copied(model, torch.float64))]
        linear = isinstance(exact[-1], nn.Linear | OrthogonalLinear)
        if linear:
            layer_bound(*layers[-1], (1,))  # refuses what computes something else
        self._head: nn.Module | None = exact[-1] if linear else None
        self._body = exact[:-1] if linear else exact
        self._bounds: list[LipschitzBound] = []
        values = x[:1].double()
        for (name, layer), double in zip(layers, self._body, strict=False):
            self._bounds.append(layer_bound(name, layer, tuple(values.shape[1:])))
            values = double(values)
        self.constant = math.prod(bound.constant for bound in self._bounds)
        if values.dim() != 2:
            raise UserError(f"the network ends in a map of shape {list(values.shape[1:])}; end it in logits")
        width = values.shape[1]
        head = self._head
        self._rows = head_rows(head, width, values)
        computed = head_rows(None if head is None else layers[-1][1], width, values).double()
        self._strayed = torch.linalg.vector_norm(self._rows - computed, dim=1)
        bias: Any = getattr(head, "bias", None)
        self._offsets = values.new_zeros(len(self._rows)) if bias is None else bias.detach()

    @torch.no_grad()
    def margins(self, x: Tensor, y: Tensor) -> Margins:
        """The signed certified radii of a batch (theory, section 11), and how far rounding may reach.

        Rounding errors are carried through the network with the values: e <- K e + relative (||h|| + e) + absolute for
        each layer, with ||h|| the largest norm within reach, ||h(x)|| plus what the constants allow. The margin that is
        left at the edge of the ball must exceed them, so the float32 network has no misclassified image inside either.

        Args:
            x: Images in [0, 1], shape [B, ...].
            y: Labels, shape [B].
        """
        values, stretch = x.double(), 1.0
        sizes: list[Tensor] = []
        for layer in self._body:
            sizes.append(torch.linalg.vector_norm(values.flatten(1), dim=1))
            values = layer(values)
        logits = torch.nn.functional.linear(values, self._rows, self._offsets)
        reach = (rival_radii(logits, y, self._rows) / max(self.constant, 1e-300)).clamp(0, x.shape[1:].numel() ** 0.5)
        error = torch.zeros_like(reach)
        for size, bound in zip(sizes, self._bounds, strict=True):
            error = bound.constant * error + bound.relative * (size + stretch * reach + error) + bound.absolute
            stretch *= bound.constant
        size = torch.linalg.vector_norm(values, dim=1) + stretch * reach + error
        if self._head is None:
            own = torch.zeros_like(logits)
        else:
            lengths = torch.linalg.vector_norm(self._rows, dim=1)
            rounding = accumulated(self._rows.shape[1] + 1)
            own = rounding * (size[:, None] * lengths + self._offsets.abs()) + size[:, None] * self._strayed
        mine = torch.zeros_like(logits, dtype=torch.bool).scatter(1, y.long()[:, None], True)
        worst = torch.where(mine, logits - own, logits + own)
        radii = (rival_radii(worst, y, self._rows) - error) / max(self.constant, 1e-300)
        lengths = torch.linalg.vector_norm(self._rows, dim=1)
        return Margins(logits, own + error[:, None] * lengths, radii)


def head_rows(head: nn.Module | None, width: int, like: Tensor) -> Tensor:
    """The rows w_j of the last linear layer, shape [m, F]; those of the identity where there is none.

    Args:
        head: The last layer.
        width: Number of features, F.
        like: Gives dtype and device of the identity.
    """
    if isinstance(head, OrthogonalLinear):
        return head.weight()
    if isinstance(head, nn.Linear):
        return head.weight
    return torch.eye(width, dtype=like.dtype, device=like.device)


class TrainedNetwork:
    """A network whose constant stays what it is while its parameters are trained, with gradients on its radii.

    Args:
        model: `nn.Sequential`, nested at will, of `KnownLipschitz` layers and layers that nothing is learnt in, with a
            linear layer of any kind at the end. Its present parameters are used, however they change.

    Raises:
        UserError: A layer whose constant changes with its parameters, or is not known, named.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = list(flattened(model))
        self._model = model
        self._constant: float | None = None
        for name, layer in layers if self._head is None else layers[:-1]:
            if not isinstance(layer, KnownLipschitz) and layer.state_dict():
                raise UserError(
                    f"layer {name or 'model'} ({type(layer).__name__}) has a Lipschitz constant that training changes; "
                    "train on the certificate with model=lipschitz_mlp, model=lipschitz_cnn, or layers that have a "
                    "lipschitz_bound"
                )

    @property
    def _head(self) -> nn.Module | None:
        """The last linear layer as the network has it now; None without."""
        *_, (_, last) = flattened(self._model)
        return last if isinstance(last, nn.Linear | OrthogonalLinear) else None

    def constant(self, x: Tensor) -> float:
        """The features' Lipschitz constant L, which training leaves as it is, so that it is computed once.

        It takes a decomposition of every layer.

        Args:
            x: Images, for the shapes of what the layers see, [B, ...].

        Raises:
            UserError: A layer of which no constant is known, named.
        """
        if self._constant is None:
            with attack_mode(self._model), torch.autocast(x.device.type, enabled=False):
                self._constant = LipschitzNetwork(self._model, x.float()).constant
        return self._constant

    def radii(self, logits: Tensor, y: Tensor, constant: float) -> Tensor:
        """Signed certified radii, without an allowance for rounding, which training does not need.

        Args:
            logits: The network's, with their graph, shape [B, m].
            y: Labels, shape [B].
            constant: L, from `constant`.

        Returns:
            Shape [B], float32 or wider, in pixel units, with the graph of the logits and of the last layer's rows.
        """
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return rival_radii(wide, y, head_rows(self._head, logits.shape[1], wide).to(wide)) / constant

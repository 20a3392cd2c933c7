"""The network as a search for flips asks it: in faster arithmetic than that in which its flips are looked at.

Where a search goes decides which flips it finds, not whether they are flips. So its gradients may be rounded, while
every flip is looked at, bisected and measured by the network itself in float32, and no distance that is reported
rests on anything else.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wdro_train.utils.contract import logits_of
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import record_passes

PRECISIONS = {"32-true": "32-true", "32": "32-true", "bf16-mixed": "bf16-mixed", "bf16": "bf16-mixed"}
"""The names by which a precision of the search may be asked for, as `lightning.Trainer` has them, and its full name."""


@dataclass(frozen=True)
class SearchArithmetic:
    """How the network is computed where a search for flips asks for gradients.

    Attributes:
        precision: `32-true`, or `bf16-mixed` for autocast to bfloat16 (8 bits of mantissa).
        channels_last: Keep weights and activations of convolutions with the channels next to each other in memory.
        compile: Let `torch.compile` fuse the layers.
    """

    precision: str = "32-true"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        """Other names of a precision mean the same, also to whoever compares settings."""
        name = str(self.precision)
        if name not in PRECISIONS:
            raise UserError(f"precision={name} is unknown; choose 32-true or bf16-mixed")
        object.__setattr__(self, "precision", PRECISIONS[name])

    def described(self) -> dict[str, Any]:
        """What the report says of it."""
        return asdict(self)

    def network(self, model: nn.Module, x: Tensor) -> nn.Module:
        """The network that a search asks: `model` itself if nothing else is chosen.

        Args:
            model: Maps images to logits. Its weights must not change afterwards, as there may be a copy of them.
            x: A few images, on which compiling is tried, shape [B, ...].

        Raises:
            UserError: The network cannot be copied or compiled.
        """
        if self == PLAIN:
            return model
        network = SearchNetwork(model, self)
        if self.compile:
            compile_passes(network, x)
        return network


PLAIN = SearchArithmetic()
"""That of the network itself."""


class SearchNetwork(nn.Module):
    """A network in faster arithmetic; its passes count as those of the network itself.

    Args:
        model: The network.
        arithmetic: How to compute it.

    Raises:
        UserError: The memory is to be laid out anew or the layers are to be compiled, and the network has no copy.
    """

    def __init__(self, model: nn.Module, arithmetic: SearchArithmetic) -> None:
        super().__init__()
        self.arithmetic, self._counted = arithmetic, (model,)  # in a tuple, so that it is no submodule
        self.fast: Any = model
        self._copied = arithmetic.channels_last or arithmetic.compile
        if self._copied:
            self.fast = _copy(model)
        if arithmetic.channels_last:
            self.fast.to(memory_format=torch.channels_last)
        if arithmetic.compile:
            self.fast = torch.compile(self.fast, dynamic=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32 where the network itself has no wider ones, shape [B, m]."""
        if self.arithmetic.channels_last and x.ndim == 4:
            if x.requires_grad:
                # What comes back goes on in the layout of the images.
                x.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.arithmetic.precision == "bf16-mixed"):
            logits = logits_of(self.fast(x), len(x))
        if self._copied:
            record_passes(self._counted[0], logits, len(x))
        return logits.float() if logits.dtype == torch.bfloat16 else logits


def _copy(model: nn.Module) -> nn.Module:
    """The network once more, in evaluation mode and with weights that take no gradient."""
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # layers of other packages may hold anything
        raise UserError(
            f"{type(model).__name__} cannot be copied ({_reason(error)}), as channels_last=true and compile=true need; "
            "leave them out"
        ) from error


def compile_passes(network: nn.Module, x: Tensor) -> None:
    """Compile the passes of an attack on some images at once, since nothing is compiled before it is needed.

    Args:
        network: Made by `torch.compile`, or told to by `network.compile()`.
        x: The images, shape [B, ...], on the network's device.

    Raises:
        UserError: The machine has no compiler, or it does not take this network.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().float().requires_grad_()
            torch.autograd.grad(network(x).float().sum(), x, allow_unused=True)
    except Exception as error:  # compilers raise what they like
        raise UserError(
            f"compile=true: the network cannot be compiled here ({_reason(error)}); leave it out, no figure needs it"
        ) from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

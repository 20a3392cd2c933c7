"""How forward and backward passes are computed: the same network and weights, in less time on some devices."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn

from wdro_train.attacks.mode import attack_mode
from wdro_train.attacks.search_network import compile_passes
from wdro_train.data import ImageDataModule


class NetworkExecution(L.Callback):
    """Lays the network out for the device, and compiles it.

    Both leave weights, checkpoints and results as they are but for rounding. They pay for convolutional networks on
    GPUs with tensor cores; small networks on a CPU are no faster.

    Args:
        channels_last: Weights of convolutions, and with them activations, lie in memory with the channels innermost
            (NHWC).
        compile: Passes go through `torch.compile`, which takes a minute or more before the first step of each mode of
            the network (attacked, trained, judged).
    """

    def __init__(self, channels_last: bool = False, compile: bool = False) -> None:
        self.channels_last, self.compile = channels_last, compile

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lay the weights out, before they are distributed and optimized."""
        self.lay_out(_network(pl_module))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compile the passes of an attack on one batch, to find out before any work whether that is possible here.

        Raises:
            UserError: The device has no compiler, or it does not take this network.
        """
        if not self.compile:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        x = None
        if isinstance(data, ImageDataModule):
            x = torch.zeros(data.batch_size // trainer.world_size, *data.shape, device=pl_module.device)
        with trainer.precision_plugin.forward_context():
            self.compile_network(_network(pl_module), x)

    def lay_out(self, network: nn.Module) -> None:
        """Lay the weights of a network out in memory as it was chosen.

        Args:
            network: It is changed.
        """
        if self.channels_last:
            network.to(memory_format=torch.channels_last)

    def compile_network(self, network: nn.Module, x: Tensor | None) -> None:
        """Compile the passes of a network, if that was chosen.

        Args:
            network: It is changed.
            x: Images of the size of a batch, shape [B, C, H, W], on which the passes of an attack are compiled at once;
                None where their shape shows in the first step (loaders of the user's own).

        Raises:
            UserError: The device has no compiler, or it does not take this network.
        """
        if not self.compile:
            return
        network.compile()
        if x is not None:
            with attack_mode(network):
                compile_passes(network, x)


def _network(pl_module: L.LightningModule) -> nn.Module:
    """The network inside of a module that trains it."""
    network = getattr(pl_module, "trained_network", pl_module)
    assert isinstance(network, nn.Module)
    return network

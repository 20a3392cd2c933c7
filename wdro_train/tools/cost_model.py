"""How long would training take on that many devices, and how much of it is communication?

`python -m wdro_train.tools.cost_model KEY=VALUE...`. The keys are those of `train.py`: they choose network, images and
method. No image is read and no device is needed: the network's floating-point operations are counted on tensors without
values, and what a step joins over the processes is recorded on a small stand-in network. The rest is arithmetic, which
docs/cost_model.md spells out.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wdro_train.attacks import Attack
from wdro_train.cli import CONF
from wdro_train.config.build import build_model
from wdro_train.config.constructors import construct
from wdro_train.config.resolvers import register_resolvers
from wdro_train.objectives import Objective
from wdro_train.tools import command_line
from wdro_train.utils import tables
from wdro_train.utils.errors import UserError
from wdro_train.utils.pass_counter import PassCounter

# What a training step joins beside attack and objective: the displacement that the attack spent, a moment of three
# float64 numbers (`Attacker.terms`), and the loss of the step for the log, which Lightning reduces behind a barrier.
SPENT = 24
LOGGED_LOSS = 4
IMAGENET = 1_281_167  # training images of ILSVRC 2012


@dataclass(frozen=True)
class NetworkFlops:
    """Floating-point operations of one image, where a multiplication and an addition are two.

    Attributes:
        forward: Of a forward pass.
        to_image: Of a backward pass to the image, the weights held, as an attack takes it.
        to_weights: Of a backward pass to the weights, as the optimizer's step takes it.
        parameters: Number of weights.
    """

    forward: int
    to_image: int
    to_weights: int
    parameters: int

    def of_step(self, passes: float) -> float:
        """Of a training step: (passes - 1) pairs to the image, and a pair to the weights.

        Args:
            passes: Pairs of a forward and a backward pass an image, as `step_cost` counts them.
        """
        return (passes - 1) * (self.forward + self.to_image) + self.forward + self.to_weights


def network_flops(model: nn.Module, shape: Sequence[int]) -> NetworkFlops:
    """Count a network's operations, by PyTorch's `FlopCounterMode` on tensors without values.

    Args:
        model: The network; it is left as it is.
        shape: (C, H, W) of its images.
    """
    model = copy.deepcopy(model).to("meta").eval().requires_grad_()
    x = torch.empty(1, *shape, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        logits = model(x)
    with FlopCounterMode(display=False) as to_image:
        torch.autograd.grad(logits.sum(), x)
    logits = model(x.detach())
    with FlopCounterMode(display=False) as to_weights:
        logits.sum().backward()
    flops = [counter.get_total_flops() for counter in (forward, to_image, to_weights)]
    return NetworkFlops(flops[0], flops[1], flops[2], sum(part.numel() for part in model.parameters()))


@dataclass(frozen=True)
class Traffic:
    """What the processes tell one another in a training step, beside the gradients of the weights.

    Attributes:
        collectives: How often all processes wait for one another.
        fixed: Bytes that a process sends, whatever its number of images.
        per_image: Bytes that it sends for each of its images.
        passes: Pairs of a forward and a backward pass an image, on the stand-in network.
    """

    collectives: int
    fixed: float
    per_image: float
    passes: float

    def sent(self, images: int) -> float:
        """Bytes that a process with so many images sends."""
        return self.fixed + self.per_image * images


@dataclass
class _Recorder:
    """A reducer of one process that writes down what it is given."""

    rank: int = 0
    world_size: int = 1
    sizes: list[int] = field(default_factory=list)

    def gather(self, value: Tensor) -> Tensor:
        """The value itself, shape [1, ...]."""
        self.sizes.append(value.numel() * value.element_size())
        return value.unsqueeze(0)


def traffic(attack: Attack, objective: Objective, shape: Sequence[int], num_classes: int) -> Traffic:
    """Record what a training step joins, and count its passes, on a stand-in: one number a channel, one dense layer.

    Its labels are its own predictions, so that no image is wrong to begin with. An attack that stops at flips still
    takes other passes there than on a trained network, for which `step_cost` counts them.

    Args:
        attack: Perturbs the images, if the objective asks for it.
        objective: Gives the training loss.
        shape: (C, H, W) of the images.
        num_classes: Number of logits.
    """
    seeds = torch.Generator().manual_seed(0)
    pooled = nn.Sequential(nn.AvgPool2d((shape[1], shape[2])), nn.Flatten(), nn.Linear(shape[0], num_classes))
    sizes: list[list[int]] = []
    for images in (1, 2):  # bytes are linear in the number of images
        x = torch.rand(images, *shape, generator=seeds)
        y = pooled(x).argmax(1)
        seen = _Recorder()
        with PassCounter(pooled) as counted:
            x_adv, importance = x, None
            if objective.needs_adversary:
                found = attack(pooled, x, y, reducer=seen, generator=seeds)
                x_adv, importance = found.x_adv, found.importance
                seen.sizes.append(SPENT)
            loss = objective(pooled, x, x_adv, y, importance=importance, reducer=seen).loss
            loss.backward()  # type: ignore[no-untyped-call]
        sizes.append([*seen.sizes, LOGGED_LOSS])
    one, two = (sum(found) for found in sizes)
    return Traffic(len(sizes[0]) + 1, 2 * one - two, two - one, counted.pairs / len(y))


@dataclass(frozen=True)
class Machine:
    """Equal devices and the network between them.

    Attributes:
        devices: How many.
        flops: Operations a second that a device reaches; for convolutions often a tenth of its nominal rate.
        bandwidth: Bytes a second that a device sends.
        latency: Seconds that a collective of a few bytes takes.
    """

    devices: int
    flops: float
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of a training step, nothing overlapping.

    Attributes:
        compute: Of the slowest device.
        statistics: For the statistics of the batch.
        gradients: For the mean of the weights' gradients, by a ring.
    """

    compute: float
    statistics: float
    gradients: float

    @property
    def seconds(self) -> float:
        """Of the whole step; gradients that are sent while others are computed make it shorter."""
        return self.compute + self.statistics + self.gradients


def step_time(work: NetworkFlops, passes: float, joined: Traffic, images: int, machine: Machine) -> StepTime:
    """The time of a training step.

    Args:
        work: Of the network.
        passes: Pairs of a forward and a backward pass an image.
        joined: What is joined.
        images: Of each device.
        machine: The devices.
    """
    n = machine.devices
    compute = images * work.of_step(passes) / machine.flops
    if n == 1:
        return StepTime(compute, 0.0, 0.0)
    statistics = joined.collectives * machine.latency + (n - 1) * joined.sent(images) / machine.bandwidth
    gradients = 2 * (n - 1) / n * 4 * work.parameters / machine.bandwidth + machine.latency
    return StepTime(compute, statistics, gradients)


def main(arguments: list[str] | None = None) -> list[StepTime]:
    """Run the command.

    Args:
        arguments: The command line; None for that of the process.

    Returns:
        The time of a step for each number of devices.
    """
    given = _parser().parse_args(arguments)
    cfg = _composed(given.keys)
    shape, classes = [int(side) for side in cfg.data.shape], int(cfg.data.num_classes)
    work = network_flops(build_model(cfg.model, trained_elsewhere=False), shape)
    joined = traffic(construct(cfg.attack), construct(cfg.objective), shape, classes)
    passes = joined.passes if given.passes is None else given.passes
    machine = Machine(1, given.flops, given.bandwidth, given.latency)
    times, rows = [], []
    for devices in given.devices:
        times.append(step_time(work, passes, joined, given.batch, replace(machine, devices=devices)))
        rows.append([str(devices), *_cells(times[-1], devices, given)])
    tables.show(
        f"{passes:.4g} passes of {work.forward / 1e9:.3g} GFLOP forward, {work.to_image / 1e9:.3g} back to the image, "
        f"{work.to_weights / 1e9:.3g} to {work.parameters:,} weights: {work.of_step(passes) / 1e9:.4g} GFLOP an image",
        ["devices", "images a step", "seconds a step", "statistics", "gradients", "minutes an epoch"],
        rows,
        f"{joined.collectives} collectives a step send {joined.sent(given.batch):,.0f} bytes a device beside the "
        f"gradients' {4 * work.parameters:,}; statistics and gradients: shares of the step",
    )
    return times


def _cells(time: StepTime, devices: int, given: argparse.Namespace) -> list[str]:
    steps = math.ceil(given.images / (given.batch * devices))
    shares = (f"{100 * part / time.seconds:.2g} %" for part in (time.statistics, time.gradients))
    return [str(given.batch * devices), f"{time.seconds:.3g}", *shares, f"{steps * time.seconds / 60:.3g}"]


def _composed(keys: list[str]) -> DictConfig:
    """The configuration of `train.py` with these keys."""
    register_resolvers()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            return compose("train", keys)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{' '.join(keys)} does not fit ({str(error).splitlines()[0]})") from error


def _positive(text: str) -> float:
    """A kind of argument: a positive number, such as 4e14."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _numbers(text: str) -> list[int]:
    """A kind of argument: whole numbers from 1 on, separated by commas."""
    return [command_line.whole(1)(part) for part in text.split(",")]


def _parser() -> command_line.Parser:
    parser = command_line.parser("cost_model", __doc__ or "")
    parser.add_argument("keys", nargs="*", help="Keys of train.py, such as model=resnet18 data=imagenet method=pgd_at.")
    options: list[tuple[str, Any, Any, str]] = [
        ("--devices", _numbers, [1, 8, 64], "Numbers of devices, by default 1,8,64."),
        ("--batch", command_line.whole(1), 256, "Images of each device in a step, by default 256."),
        ("--images", command_line.whole(1), IMAGENET, f"Images of an epoch, by default {IMAGENET:,} (ImageNet)."),
        ("--passes", _positive, None, "Pairs of passes an image; by default those of a small stand-in network."),
        ("--flops", _positive, 6e13, "Operations a second that a device reaches, by default 6e13."),
        ("--bandwidth", _positive, 5e10, "Bytes a second that a device sends, by default 5e10."),
        ("--latency", _positive, 5e-5, "Seconds of a collective of a few bytes, by default 5e-5."),
    ]
    for name, kind, default, text in options:
        parser.add_argument(name, type=kind, default=default, help=text)
    return parser


if __name__ == "__main__":
    command_line.run(main)

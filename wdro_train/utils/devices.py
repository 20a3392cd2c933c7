"""The device on which a command computes: the one that is named, or else the best there is."""

from __future__ import annotations

import torch
from torch import Tensor

from wdro_train.utils.errors import UserError


def resolve_device(name: str | None = None) -> torch.device:
    """The device of that name, or the best one.

    Args:
        name: Such as `cpu` or `cuda:1`. None: the accelerator of this machine, or else the CPU. Apple's MPS is used
            only where it is named, as it has no double precision, in which distances are summed.

    Raises:
        UserError: There is no such device.
    """
    if name is None:
        best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if best is None or best.type == "mps" else best
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {name} is not available ({reason}); choose cpu, or leave it out") from error


def may_look(values: Tensor) -> bool:
    """Whether the program may look at numbers without waiting for them: on a CPU they are there.

    Args:
        values: The numbers.
    """
    return values.device.type == "cpu"


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given, so that a clock that is read next measures it.

    Args:
        device: An accelerator computes while the program goes on; for the CPU there is nothing to wait for.
    """
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

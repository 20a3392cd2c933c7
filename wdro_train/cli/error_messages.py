"""Sentences for what others raise: Hydra, Lightning, the operating system, a device without memory."""

from __future__ import annotations

import re
import sys

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from wdro_train.utils.errors import IN_WORKER, chain, last_words, user_error_in

_COMPILED_ONCE = re.compile("double backward|donated buffers")  # what torch.compile says of a second derivative
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|std::bad_alloc", re.IGNORECASE)
_NO_NUMBER_OF_BYTES = re.compile(r"tried to allocate [\d.]+ \w+|you tried to allocate \d+ bytes", re.IGNORECASE)


def root_cause(error: BaseException) -> BaseException:
    """What an exception of Hydra is about; any other exception is about itself.

    Args:
        error: Any exception.
    """
    found = user_error_in(error)
    if found is not None:
        return found
    return next((one for one in chain(error) if not isinstance(one, HydraException)), error)


def sentence(error: BaseException) -> str | None:
    """What is in the way of the user, on one line: wrong input, or what the machine or a library refuses.

    Args:
        error: Any exception, however wrapped: by Hydra, or by the worker process of a loader that it was raised in.

    Returns:
        None if it looks like a mistake in a program.
    """
    found = user_error_in(error)
    if found is not None:
        return _line(found)
    for one in chain(error):
        said = _sentence(one)
        if said is not None:
            return said
    return None


def _sentence(error: BaseException) -> str | None:
    """The sentence for one exception, whatever caused it; None if it looks like a mistake in a program."""
    if _is_lightnings(error):
        return _line(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        where = "CUDA" if "cuda" in str(error).lower() else "the machine"
        wanted = _NO_NUMBER_OF_BYTES.search(str(error))
        reason = f" ({wanted[0].lower()})" if wanted else ""
        return f"{where} ran out of memory{reason}; lower data.batch_size, for evaluate.py batch_size, or the network"
    if isinstance(error, RuntimeError) and _COMPILED_ONCE.search(str(error)):
        return "this training differentiates twice, which compiled networks do not; leave out compile=true"
    if isinstance(error, OmegaConfBaseException):
        return _line(error)
    if isinstance(error, HydraException):
        return None
    if isinstance(error, OSError):
        if IN_WORKER in str(error):
            return last_words(error)
        reason = error.strerror or _line(error) or type(error).__name__
        place = next((f"{name}: " for name in (error.filename2, error.filename) if isinstance(name, str)), "")
        return f"{place}{reason}; give another path, or make room and access there"
    return None


def _is_lightnings(error: BaseException) -> bool:
    """Whether Lightning refuses a configuration; where it has not been imported, it has raised nothing."""
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    return lightning is not None and isinstance(error, lightning.MisconfigurationException)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())

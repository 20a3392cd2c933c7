"""The one error type for input that a user can mend, and the sentences for what others raise."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hydra.errors import HydraException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

_IN_WORKER = "Original Traceback"
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|std::bad_alloc", re.IGNORECASE)
_NO_NUMBER_OF_BYTES = re.compile(r"tried to allocate [\d.]+ \w+|you tried to allocate \d+ bytes", re.IGNORECASE)


class UserError(ValueError):
    """Bad input: one sentence that names the value and the fix."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what led to it, the last one first.

    Args:
        error: Any exception.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def user_error_in(error: BaseException | None) -> UserError | None:
    """The `UserError` at the root of a chain of wrapped exceptions, if there is one.

    Hydra wraps what a constructor raises; the sentence meant for the user is further down.

    Args:
        error: Any exception.

    Returns:
        The first `UserError` along `__cause__` / `__context__`, or None.
    """
    found = next((one for one in chain(error) if isinstance(one, UserError)), None)
    if found is not None and _IN_WORKER in str(found):
        return UserError(_last_words(found))
    return found


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
    """The same for one exception of a chain."""
    if isinstance(error, MisconfigurationException):
        return _line(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        where = "CUDA" if "cuda" in str(error).lower() else "the machine"
        wanted = _NO_NUMBER_OF_BYTES.search(str(error))
        reason = f" ({wanted[0].lower()})" if wanted else ""
        return f"{where} ran out of memory{reason}; lower data.batch_size, for evaluate.py batch_size, or the network"
    if isinstance(error, OmegaConfBaseException):
        return _line(error)
    if isinstance(error, HydraException):
        return None
    if isinstance(error, OSError):
        if _IN_WORKER in str(error):
            return _last_words(error)
        reason = error.strerror or _line(error) or type(error).__name__
        place = next((f"{name}: " for name in (error.filename2, error.filename) if isinstance(name, str)), "")
        return f"{place}{reason}; give another path, or make room and access there"
    return None


def _last_words(error: BaseException) -> str:
    """What an exception said in a worker process, out of the traceback that it arrives as."""
    last = str(error).strip().splitlines()[-1]
    return re.sub(r"^[\w.]+: ", "", last)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())

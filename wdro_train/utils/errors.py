"""The one error type for input that a user can mend."""

from __future__ import annotations

import re
from collections.abc import Iterator

IN_WORKER = "Original Traceback"  # in the text that an exception of a loader's process arrives as


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
    if found is not None and IN_WORKER in str(found):
        return UserError(last_words(found))
    return found


def last_words(error: BaseException) -> str:
    """What an exception said in a worker process, out of the traceback that it arrives as.

    Args:
        error: With that traceback as its text.
    """
    last = str(error).strip().splitlines()[-1]
    return re.sub(r"^[\w.]+: ", "", last)

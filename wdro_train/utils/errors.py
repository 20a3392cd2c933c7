"""The one type of error for input that a user can mend, and how to find it among the exceptions that wrap it."""

from __future__ import annotations

import re
from collections.abc import Iterator

# An exception of a loader process arrives as text; PyTorch puts these words before the traceback in it.
IN_WORKER = "Original Traceback"


class UserError(ValueError):
    """Bad input: one sentence that names the value and the fix."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and the ones that it was raised from or during, the last one first.

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
    """The message of an exception that was raised in a loader process and arrives as the text of its traceback.

    Args:
        error: Its text ends with a line such as `wdro_train.utils.errors.UserError: the message`.
    """
    last = str(error).strip().splitlines()[-1]
    return re.sub(r"^[\w.]+: ", "", last)

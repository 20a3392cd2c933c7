"""The one error type for input that a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: one sentence that names the value and the fix."""


def user_error_in(error: BaseException | None) -> UserError | None:
    """The `UserError` at the root of a chain of wrapped exceptions, if there is one.

    Hydra wraps what a constructor raises; the sentence meant for the user is further down.

    Args:
        error: Any exception.

    Returns:
        The first `UserError` along `__cause__` / `__context__`, or None.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, UserError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None

"""Whatever a constructor raises on settings that it does not take becomes one sentence for whoever wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wdro_train.utils.errors import UserError, user_error_in


@contextmanager
def one_sentence(
    describe: Callable[[Exception], str | None], expected: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
    """Inside, an exception becomes a `UserError`: the one at its root, since Hydra wraps them, or else a new one.

    Args:
        describe: The sentence for an exception; None lets it through as it is.
        expected: Exceptions that settings can cause. Others are let through.
    """
    try:
        yield
    except expected as error:
        found = user_error_in(error)
        if found is error:
            raise
        text = describe(error) if found is None else None
        if found is None and text is None:
            raise
        raise found or UserError(text) from error

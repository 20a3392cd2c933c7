"""Docstrings write formulas in plain text, such as (E ||g||_*^q)^(1/q); on the site these signs are not emphasis."""

import re
from typing import Any

import griffe

_SIGNS = re.compile(r"(?<=[|)\]])_|(?<=_)\*|(?<=\^)\*|\*(?=\^)")


class EscapeFormulas(griffe.Extension):
    """Puts a backslash before the underscores and stars of norms in every docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring, outside code.

        Args:
            obj: A module, class, function or attribute.
            **kwargs: What else griffe says about it.
        """
        if obj.docstring is not None:
            parts = obj.docstring.value.split("`")
            parts[::2] = [_SIGNS.sub(lambda sign: "\\" + sign[0], part) for part in parts[::2]]
            obj.docstring.value = "`".join(parts)

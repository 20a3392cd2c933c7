"""Docstrings are written to be read as plain text; on the site formulas keep their signs, and examples are code."""

import re
from typing import Any

import griffe

_SIGNS = re.compile(r"(?<=[|)\]])_|(?<=_)\*|(?<=\^)\*|\*(?=\^)")
_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.MULTILINE)  # a doctest, with what it prints, up to an empty line


class EscapeFormulas(griffe.Extension):
    """Escapes the signs of norms, such as (E ||g||_*^q)^(1/q), and puts doctests into a section of their own."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one docstring, outside code, and leave out the method that only checks a dataclass's arguments.

        Args:
            obj: A module, class, function or attribute.
            **kwargs: What else griffe says about it.
        """
        if obj.name == "__post_init__":
            obj.public = False
        if obj.docstring is not None:
            text = obj.docstring.value
            examples = _EXAMPLE.findall(text)
            parts = _EXAMPLE.sub("", text).split("`")
            parts[::2] = [_SIGNS.sub(lambda sign: "\\" + sign[0], part) for part in parts[::2]]
            sections = ["Examples:\n    " + example.replace("\n", "\n    ") for example in examples]
            obj.docstring.value = "\n\n".join(["`".join(parts).strip(), *sections])

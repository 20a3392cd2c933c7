"""Formulas become MathML when the site is built, so that a browser draws them without any script and offline."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of $...$ and $$...$$.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# GitHub needs words where Markdown would take a backslash before a sign away; the converter knows the signs.
_WORDS = {r"\lbrace": r"\{", r"\rbrace": r"\}", r"\cr": r"\\"}
# Bars of norms and of absolute values that were not asked to grow: a browser stretches them, and takes them for signs
# between two values.
_BAR = re.compile(r'<mo(?: stretchy="false")?>(&#x02016;|&#x0007C;)</mo>')
_COMMAND = re.compile(r"\\[A-Za-z]+")


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """The HTML of a page; mkdocs calls this for each.

    Args:
        content: With formulas in LaTeX.
        page: Is named if a formula cannot be drawn.

    Raises:
        ValueError: A command of LaTeX that the converter does not know, which it would print as it stands.
    """

    def drawn(found: re.Match[str]) -> str:
        latex = html.unescape(found[3])
        for word, sign in _WORDS.items():
            latex = latex.replace(word, sign)
        formula = convert(latex, display="block" if found[2] == "[" else "inline")
        if unknown := _COMMAND.search(formula):
            raise ValueError(f"{page.file.src_uri}: {unknown[0]} in {latex!r} has no MathML; write it otherwise")
        formula = _BAR.sub(r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>', formula)
        return f'<{found[1]} class="formula">{formula}</{found[1]}>'

    return _FORMULA.sub(drawn, content)

"""The option with which a command line trusts a constructor."""

from __future__ import annotations

import argparse


def add_allow_option(parser: argparse.ArgumentParser) -> None:
    """The option with which a command line trusts constructors that a checkpoint names.

    Args:
        parser: Gets the option `--allow`, a list of names.
    """
    parser.add_argument(
        "--allow",
        type=lambda text: frozenset(filter(None, text.split(","))),
        default=frozenset(),
        metavar="NAMES",
        help="constructors of your own that a checkpoint may use, such as my_package.models.mlp,my_package.data.Mine",
    )

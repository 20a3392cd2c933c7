"""What the values of a configuration may be, checked before anything is made."""

from wdro_train.cli.schemas.check import check

__all__ = ["check"]

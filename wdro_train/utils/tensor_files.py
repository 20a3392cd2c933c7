"""Reading tensors from a file that others have written, without running anything in it."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from wdro_train.utils.plain_values import SHOWN_CHARACTERS


class UnreadableError(ValueError):
    """A file that is not read; the message says why, in half a sentence."""


def read_tensors(file: Path) -> Any:
    """The tensors and plain values in a file of `torch.save` or safetensors; nothing in the file is run.

    Args:
        file: With the ending `.safetensors`, or else written by `torch.save`.

    Raises:
        UnreadableError: It is damaged, or holds more than that.
    """
    try:
        return (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # a damaged or hostile file can raise anything
        raise UnreadableError(load_failure(error)) from error


def load_failure(error: Exception) -> str:
    """Why another library did not load a file, without its advice on how to load it all the same.

    Args:
        error: Raised by `torch.load` or by a library that calls it.
    """
    text = str(error).strip()
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text or "safe_globals" in text:
        if named := re.search(r"GLOBAL ([\w.]+)", text):
            return f"it holds the Python object {named[1][:SHOWN_CHARACTERS]}, and reading such objects can run code"
        return "it is damaged, or holds Python objects, and reading such objects can run code"
    if isinstance(error, LookupError):  # of an unpickler that took text for its instructions; it names a byte
        return "it is damaged, or was not written by torch.save"
    return text.splitlines()[0] if text else type(error).__name__

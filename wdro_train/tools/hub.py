"""Upload a folder to a repository of the Hugging Face hub, with the token that `hf auth login` has stored."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from wdro_train.utils.errors import UserError
from wdro_train.utils.optional_imports import optional

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def repository(text: str) -> str:
    """A kind of argument: the name of a repository, with its owner.

    Args:
        text: As typed.
    """
    if not _REPOSITORY.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text} names no repository; write it like me/my_network")
    return text


def require() -> None:
    """Refuse to begin without the package, or without a token.

    Raises:
        UserError: huggingface_hub is not installed, or nobody is logged in.
    """
    if optional("huggingface_hub", "export").get_token() is None:
        raise UserError("the hub needs a token to write; run hf auth login, or set HF_TOKEN")


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Upload all files of a folder in one commit; the repository is made if it is not there.

    Args:
        folder: What to upload.
        repo: Owner and name.
        private: Make a new repository private; one that is there stays as it is.

    Returns:
        The address of the repository.

    Raises:
        UserError: The hub cannot be reached or does not accept it; the folder stays where it is.
    """
    api = optional("huggingface_hub", "export").HfApi()
    try:
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by wdro_train.tools.export")
    except Exception as error:  # the client passes on what its own client of HTTP raises, another one in each version
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the hub did not take {repo} ({reason}); {folder} is whole, so mend it and upload with hf upload {repo} "
            f"{folder}"
        ) from error
    return str(address)

"""Uploads of a folder to the Hugging Face Hub, and refusals before the folder is made."""

import pathlib
import shlex

import huggingface_hub
from huggingface_hub import utils

SETTING = "push_to_hub"
STALE = ["*.safetensors", "*.safetensors.index.json"]
"""Weight files of an earlier upload, which are deleted where the folder has no file of their name."""
REMEDY = "log in with hf auth login, or set HF_TOKEN to a token that may write"


def check_name(repository: str):
    """Raises ValueError where `repository` is not USER/NAME, or no token of the hub is known."""
    at = f'{SETTING} = "{repository}"'
    try:
        utils.validate_repo_id(repository)
        if "/" not in repository:
            raise ValueError("it has no user or organisation")
    except ValueError as error:
        raise ValueError(f"{at} is no repository: name one as USER/NAME ({error})") from None
    if not huggingface_hub.get_token():
        raise ValueError(f"{at} needs a token of the hub, and there is none: {REMEDY}")


def create(repository: str, private: bool):
    """Makes the repository if it is not there.

    Raises ValueError where the hub is out of reach, where the token may not write, and where `private` is
    asked of a repository that is public.
    """
    at, api = f'{SETTING} = "{repository}"', huggingface_hub.HfApi()
    try:
        role = api.whoami().get("auth", {}).get("accessToken", {}).get("role")
        if role != "read":
            api.create_repo(repository, private=private or None, exist_ok=True)
        is_public = private and role != "read" and not api.repo_info(repository).private
    except Exception as error:  # those of the library's HTTP client have no public name
        raise ValueError(
            f"{at} cannot be written to ({why(error)}): check name, network and token, or export without it"
        ) from error
    if role == "read":
        raise ValueError(f"{at} cannot be written to with a token that may only read: {REMEDY}")
    if is_public:
        raise ValueError(
            f"{at} is public there, and private is set: make it private on the hub, or name another"
        )


def upload(folder: pathlib.Path, repository: str, private: bool, message: str) -> str:
    """Uploads the folder as one commit, or several if it is large, and returns its address.

    Raises ValueError, with the command that repeats the upload, where the hub does not take it.
    """
    try:
        commit = huggingface_hub.HfApi().upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, delete_patterns=STALE
        )
    except Exception as error:  # the library that moves large files raises any exception
        stale = "".join(f" --delete {shlex.quote(pattern)}" for pattern in STALE)
        again = (
            f"hf upload {repository} {shlex.quote(str(folder))} .{' --private' * private}{stale}"
        )
        raise ValueError(
            f"{folder} is written, and not uploaded to {repository} ({why(error)}): repeat that by {again}"
        ) from error
    return commit.commit_url


def why(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")

"""Upload of what an export wrote to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from saten_runtime.bundle.folder import Bundle
from saten_runtime.bundle.manifest import MANIFEST_FILE
from saten_runtime.errors import SatenError, UsageError
from saten_runtime.records.plain_text import one_line

__all__ = ["check_repository", "push"]

_REPOSITORY = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_MOST_CHARACTERS = 300


def check_repository(repository: str) -> None:
    """Refuse a name before minutes of work are spent.

    Raises:
        UsageError: it is not of the form owner/name.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"hub repository {repository!r}: expected owner/name, such as your-name/minilm-saten")


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a bundle, or an export in another layout, in one commit; the repository is made if there is none.

    The token is the one that `hf auth login` stored, or HF_TOKEN. Returns the commit's address.

    Raises:
        UsageError: the repository is not of the form owner/name, or `folder` is no export.
        BundleError: the bundle is damaged.
        SatenError: the upload failed. `folder` is never changed.
    """
    from huggingface_hub import HfApi

    check_repository(repository)
    if (folder / MANIFEST_FILE).is_file():
        Bundle.open(folder)
    elif not any((folder / "onnx").glob("*.onnx")):
        raise UsageError(f"{folder}: neither a bundle nor onnx/*.onnx; expected what `saten-edge export` wrote")
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=f"Upload {folder.name} with saten-edge"
        )
    except Exception as cause:  # of the network, the hub, or its client, which share no base
        raise SatenError(
            f"{folder}: not uploaded to {repository} ({_reason(cause)}); it is whole on this disk, "
            f"repeat with: saten-edge push {folder} {repository}"
        ) from None
    return str(commit.commit_url)


def _reason(cause: Exception) -> str:
    """One line of an error, without the token."""
    from huggingface_hub import get_token

    line = one_line(cause)
    token = get_token()
    return (line.replace(token, "…") if token else line)[:_MOST_CHARACTERS]

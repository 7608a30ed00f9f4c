"""A repository of the Hugging Face Hub, with a progress bar of bytes."""

from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from tqdm.auto import tqdm

from stages.running.errors import InputError
from stages.storage.source import Source


class _Bar(tqdm):
    """Of the Hub's bars the one that counts the bytes of all files; with its own class, it is for terminals only.

    The others are of files, and of what Xet, the Hub's storage, has sent of which bytes.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        bytes_of_files = settings.get("unit") == "B" and settings.get("desc") != "Downloading bytes"
        unwanted = constants.HF_HUB_DISABLE_PROGRESS_BARS is True  # says the environment's variable of that name
        kept = {key: value for key, value in settings.items() if key != "bar_format"}
        own = {"desc": "fetch", "disable": not bytes_of_files or unwanted}
        super().__init__(*arguments, **kept | own)

    def set_description(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Keep the description: the Hub's is about Xet."""


def download_snapshot(source: Source, folder: Path) -> None:
    """Download the wanted files of a Hub source to `folder`.

    Raises:
        InputError: the Hub does not have them, or cannot be reached.
    """
    assert source.hub is not None
    try:
        snapshot_download(
            source.hub,
            repo_type=source.repo_type,
            revision=source.revision,
            allow_patterns=source.files,
            local_dir=folder,
            tqdm_class=_Bar,
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"{source.hub}@{source.revision}: {' '.join(str(error).split())[:400]}") from None

"""Where a model lies: a directory, or a hub id's copy of one."""

from __future__ import annotations

from pathlib import Path

_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "pytorch_model*.bin"]


def resolve(directory: str | Path) -> Path:
    """Return the local directory of a model: the given one, or a hub id's copy where huggingface_hub can get it.

    Raises FileNotFoundError with the remedy where it is neither.
    """
    path = Path(directory)
    if path.is_dir():
        return path
    name = str(directory)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"{name} is not a directory; expected a model directory or a hub id such as owner/name")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} is not a directory; to fetch it from the hub, install huggingface_hub, or download it and pass its path"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name} is not a directory and could not be fetched from the hub ({type(error).__name__}); "
            "download it and pass its path"
        ) from error

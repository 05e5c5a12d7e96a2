"""Atomic writing of files."""

import os
from pathlib import Path

from service.runtime.atomic_file import unfinished


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it. Missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as new:
        new.write_bytes(content)
        new.replace(path)


def ensure_writable(path: Path) -> None:
    """Create a folder if it does not exist. Raises OSError if nothing can be written into it."""
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path}: the folder is not writable")

"""Files that are whole or not there."""

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Writes a file beside its place, then puts it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.replace(path)


def ensure_writable(path: Path) -> None:
    """Makes a folder, if there is none. Raises OSError when nothing can be written into it."""
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise PermissionError(f"{path}: nothing can be written into it")

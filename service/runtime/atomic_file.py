"""Files that appear complete or not at all: they are written under another name, and then renamed."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def unfinished(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Provide the name of a temporary file next to `path`. The caller writes the file and moves it to its place.

    unique: a random hidden name, so that other processes may write the same file. The default is `NAME.new`, which
    overwrites what a killed process left. The temporary file is removed at the end if it still exists.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part" if unique else f"{path.name}.new")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)

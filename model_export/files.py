"""Files that are whole or not there."""

import hashlib
from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Writes a file beside its place, then puts it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.replace(path)


def write_model(path: Path, content: bytes) -> None:
    """Writes a model and, beside it, its SHA-256."""
    write(path, content)
    digest = hashlib.sha256(content).hexdigest()
    write(path.with_suffix(".onnx.sha256"), f"{digest}  {path.name}\n".encode())

"""Models as files that the service finds."""

import hashlib
from pathlib import Path

from model_export import files
from service.variants import HALF, is_half


def check_name(path: Path) -> None:
    """Raises ValueError for a name that the service takes for no model's, or for another model's half precision."""
    if path.suffix != ".onnx" or is_half(path):
        raise ValueError(f"{path}: the service takes only files that end in .onnx, and not in {HALF}, for models")


def write_model(path: Path, content: bytes) -> None:
    """Writes a model and, beside it, its SHA-256."""
    files.write(path, content)
    digest = hashlib.sha256(content).hexdigest()
    files.write(path.with_suffix(".onnx.sha256"), f"{digest}  {path.name}\n".encode())

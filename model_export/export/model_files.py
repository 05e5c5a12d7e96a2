"""Model files: names that the service finds, checksums, and protection from being overwritten."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from model_export import files
from service.inference.half_precision import SUFFIX, half_of, is_half

log = logging.getLogger(__name__)

# This file in a run's folder has the SHA-256 of each file that the run was exported to, by its path.
EXPORTS = "exports.json"


def check_name(path: Path) -> None:
    """Raise ValueError if the service would not load this file, or load it as another model's half precision."""
    if path.suffix != ".onnx" or is_half(path):
        raise ValueError(
            f"{path}: the name must end in .onnx and not in {SUFFIX}, or the service does not load the file as a model"
        )


def check_replaceable(path: Path, *, force: bool, written: Mapping[str, str] | None = None) -> None:
    """Raise FileExistsError if the file exists and must not be replaced.

    written: the SHA-256 of files that may be replaced, by their paths.
    """
    if force or not path.exists():
        return
    known = (written or {}).get(str(path.resolve()))
    if known is None or known != _sha256(path.read_bytes()):
        raise FileExistsError(f"{path} already exists: replace it with --force, or choose another --output (-o)")


def exports_of(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a run was exported to, by its path."""
    path = run / EXPORTS
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def note_export(run: Path, path: Path) -> None:
    """Record that a file was exported from a run."""
    noted = exports_of(run) | {str(path.resolve()): _sha256(path.read_bytes())}
    files.write_atomic(run / EXPORTS, json.dumps(noted, indent=1).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_model(path: Path, content: bytes) -> None:
    """Write a model and its SHA-256 file. Log a warning if its half-precision version is now outdated."""
    files.write_atomic(path, content)
    files.write_atomic(path.with_suffix(".onnx.sha256"), f"{_sha256(content)}  {path.name}\n".encode())
    if not is_half(path) and half_of(path).exists():
        log.warning("%s belongs to the previous model: create it again, or remove it", half_of(path))

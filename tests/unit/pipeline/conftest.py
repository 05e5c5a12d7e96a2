"""A folder of photos, and runs over it."""

from pathlib import Path

import numpy as np
import pytest

from service.inference.registry import ModelRegistry
from service.pipeline import directory
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import Settings
from tests.conftest import encoded


@pytest.fixture
def colorizer(models: Path) -> Colorizer:
    settings = Settings(models=models, device="cpu")
    return Colorizer(ModelRegistry(settings), settings)


@pytest.fixture
def album(tmp_path: Path, jpeg: bytes) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for name in "abcd":
        (folder / f"{name}.jpg").write_bytes(jpeg)
    return folder


def run(colorizer: Colorizer, given: list[Path], out: Path, *, force: bool = False, **options: str) -> list[str]:
    """Return the result for each photo: the name of its output, "skipped", or the reason for its failure."""
    jobs = directory.find_jobs(given, out)
    outcomes = directory.colorize_all(colorizer, jobs, Options.model_validate(options), threads=2, force=force)
    return [outcome.reason or ("skipped" if outcome.skipped else outcome.written.name) for outcome in outcomes]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def photo(name: str, pixels: np.ndarray) -> bytes:
    """Return a photo of the format that its name says."""
    formats = {"jpg": "JPEG", "jpe": "JPEG", "tif": "TIFF"}
    ending = name.rsplit(".", 1)[1].lower()
    return encoded(pixels, formats.get(ending, ending.upper()))

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import luma


@pytest.fixture
def tomau(models: Path, tmp_path: Path):
    def run(*arguments: object, code: int = 0) -> str:
        command = [str(Path(sys.executable).with_name("tomau")), *map(str, arguments)]
        environment = os.environ | {"TOMAU_MODELS": str(models)}
        ended = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout + ended.stderr

    return run


def test_a_photo_is_coloured_into_the_format_of_its_new_name(tomau, tmp_path: Path, jpeg: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    tomau("colorize", "photo.jpg", "-o", "coloured.png", "--model", "warm", "--strength", "0.5")
    coloured = (tmp_path / "coloured.png").read_bytes()
    assert coloured.startswith(b"\x89PNG")
    assert np.abs(luma(coloured) - luma(jpeg)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("missing.jpg", "-o", "out.png"), "missing.jpg"),
        (("words.txt", "-o", "out.png"), "not a JPEG"),
        (("photo.jpg", "-o", "out.bmp"), "format: "),
        (("photo.jpg", "-o", "out.png", "--model", "nobody"), "nobody"),
        (("photo.jpg", "-o", "out.png", "--strength", "5"), "strength: "),
        (("photo.jpg", "-o", "no/such/folder/out.png"), "no/such/folder"),
    ],
)
def test_what_can_not_be_done_is_said_in_a_line(
    tomau, tmp_path: Path, jpeg: bytes, arguments: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    (tmp_path / "words.txt").write_text("words")
    said = tomau("colorize", *arguments, code=1)
    assert reason in said
    assert said.startswith("tomau: ")
    assert said.count("\n") == 1


def test_models_settings_and_errors_are_listed(tomau, models: Path) -> None:
    listed = tomau("models")
    assert "* compact 1  lab  32 px" in listed
    assert hashlib.sha256((models / "warm.onnx").read_bytes()).hexdigest() in listed
    assert f"| `TOMAU_MODELS` | `{models}` |" in tomau("settings")
    assert "| 401 | `missing_key` |" in tomau("errors")
    assert "| tiff | `image/tiff` | 8, 16 of a 16-bit photo |" in tomau("formats")
    assert tomau("--version").startswith("tomau ")

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service import cli
from service.colorizer import Options
from tests.conftest import decoded, encoded, luma


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


def test_the_options_are_those_of_an_upload() -> None:
    assert list(cli.OPTIONS) == list(Options.model_fields)


@pytest.fixture
def album(tmp_path: Path, jpeg: bytes, gray: np.ndarray, astronaut: np.ndarray) -> Path:
    folder = tmp_path / "album"
    (folder / "1931").mkdir(parents=True)
    (folder / "1931" / "wedding.jpg").write_bytes(jpeg)
    (folder / "1931" / "wedding.png").write_bytes(encoded(gray, "PNG"))
    (folder / "beach.tif").write_bytes(encoded(gray, "TIFF"))
    (folder / "holiday.jpg").write_bytes(encoded(astronaut, "JPEG"))
    (folder / "damaged.jpg").write_bytes(jpeg[:1000])
    (folder / "words.txt").write_text("words")
    return folder


def test_an_album(tomau, album: Path, tmp_path: Path, jpeg: bytes) -> None:
    said = tomau("colorize", "album", "-o", "coloured", "--if-color", "keep", code=1)
    written = {str(path.relative_to(tmp_path / "coloured")) for path in (tmp_path / "coloured").rglob("*.*")}
    assert written == {"1931/wedding.jpg", "1931/wedding-2.png", "beach.tiff", "holiday.jpg"}
    assert "4 coloured, 0 skipped, 1 failed" in said
    assert "tomau: album/damaged.jpg: the JPEG file is damaged" in said
    assert (tmp_path / "coloured" / "holiday.jpg").read_bytes() == (album / "holiday.jpg").read_bytes()
    coloured = (tmp_path / "coloured" / "1931" / "wedding.jpg").read_bytes()
    assert np.abs(luma(coloured) - luma(jpeg)).mean() < 1
    (album / "damaged.jpg").write_bytes(jpeg)
    assert "1 coloured, 4 skipped, 0 failed" in tomau("colorize", "album", "-o", "coloured")
    assert "5 coloured, 0 skipped, 0 failed" in tomau("colorize", "album", "-o", "coloured", "--force")


def test_a_photo_is_never_overwritten_by_its_answer(tomau, album: Path) -> None:
    before = (album / "holiday.jpg").read_bytes()
    assert "overwritten" in tomau("colorize", "album/holiday.jpg", "-o", "album", "--force", code=1)
    assert (album / "holiday.jpg").read_bytes() == before


def test_several_files_into_a_new_folder(tomau, album: Path, tmp_path: Path) -> None:
    tomau(
        "colorize", "album/beach.tif", "album/holiday.jpg", "-o", "new/folder", "--format", "webp", "--max-side", "100"
    )
    found = {path.name: max(decoded(path.read_bytes()).shape) for path in (tmp_path / "new" / "folder").iterdir()}
    assert found == {"beach.webp": 100, "holiday.webp": 100}

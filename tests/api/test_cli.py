"""The command `tomau`, run as a process."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service import cli
from service.pipeline.options import Options
from service.pipeline.output_folder import record_path
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
        (("photo.jpg", "-o", "out.bmp"), "--output: .bmp can't be written"),
        (("photo.jpg", "-o", "out.png", "--format", "webp"), "--format: webp does not fit --output out.png"),
        (("photo.jpg", "photo.jpg", "-o", "out.png"), "--output: out.png is the name of one output"),
        ((".", "-o", "."), "--output: . is the folder with the photos"),
        (("photo.jpg", "-o", "words.txt/"), "words.txt"),
        (("photo.jpg", "-o", "out.png", "--model", "nobody"), "nobody"),
        (("photo.jpg", "-o", "out.png", "--strength", "5"), "strength: "),
    ],
)
def test_what_can_not_be_done_is_said_in_a_line(
    tomau, tmp_path: Path, jpeg: bytes, arguments: tuple[str, ...], reason: str
) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    (tmp_path / "words.txt").write_text("words")
    said = tomau("colorize", *arguments, code=1)
    said = said.removeprefix("0 coloured, 0 skipped, 1 failed\n")
    assert reason in said
    assert said.startswith("tomau: ")
    assert said.count("\n") == 1


def test_models_settings_and_errors_are_listed(tomau, models: Path) -> None:
    listed = tomau("models")
    assert "* compact 1  lab  32 px" in listed
    assert hashlib.sha256((models / "warm.onnx").read_bytes()).hexdigest() in listed
    assert f"| `TOMAU_MODELS` | `{models}` |" in tomau("settings")
    assert "| 401 | `missing_key` |" in tomau("errors")
    assert "| tiff | `image/tiff` | 8; 16 for a 16-bit photo |" in tomau("formats")
    assert tomau("--version").startswith("tomau ")


def test_the_options_are_those_of_an_upload(tomau) -> None:
    said = " ".join(tomau("colorize", "--help").split())
    assert cli.NOTES.keys() <= Options.model_fields.keys()
    for name, field in Options.model_fields.items():
        assert f" --{name.replace('_', '-')} " in said
        assert field.description in said
    assert "--metadata {keep,strip}" in said
    assert "--quality QUALITY" in said
    assert "Allowed: 1 to 100." in said
    assert "Allowed: at least 1." in said
    assert "Default: 1.0." in said


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
    written = {str(path.relative_to(tmp_path / "coloured")) for path in (tmp_path / "coloured").rglob("[!.]*.*")}
    assert written == {"1931/wedding.jpg", "1931/wedding.png", "beach.tif", "holiday.jpg"}
    assert "4 coloured, 0 skipped, 1 failed" in said
    assert "tomau: album/damaged.jpg: the JPEG file is damaged" in said
    assert (tmp_path / "coloured" / "holiday.jpg").read_bytes() == (album / "holiday.jpg").read_bytes()
    coloured = (tmp_path / "coloured" / "1931" / "wedding.jpg").read_bytes()
    assert np.abs(luma(coloured) - luma(jpeg)).mean() < 1
    (album / "damaged.jpg").write_bytes(jpeg)
    assert "1 coloured, 4 skipped, 0 failed" in tomau("colorize", "album", "-o", "coloured")
    assert "5 coloured, 0 skipped, 0 failed" in tomau("colorize", "album", "-o", "coloured", "--force")


@pytest.mark.parametrize("output", ["album", "album/holiday.jpg"])
def test_a_photo_is_never_overwritten_by_its_answer(tomau, album: Path, output: str) -> None:
    before = (album / "holiday.jpg").read_bytes()
    assert "would replace" in tomau("colorize", "album/holiday.jpg", "-o", output, "--force", code=1)
    assert (album / "holiday.jpg").read_bytes() == before


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_file_that_tomau_did_not_write_is_left(tomau, tmp_path: Path, jpeg: bytes, force: tuple[str, ...]) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    (tmp_path / "other.png").write_bytes(b"precious")
    assert "other.png exists already" in tomau("colorize", "photo.jpg", "-o", "other.png", *force, code=1)
    assert (tmp_path / "other.png").read_bytes() == b"precious"


def test_an_answer_of_its_own_is_left_and_replaced_if_forced(tomau, tmp_path: Path, jpeg: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    tomau("colorize", "photo.jpg", "-o", "other.png")
    first = (tmp_path / "other.png").read_bytes()
    stronger = ("colorize", "photo.jpg", "-o", "other.png", "--strength", "2")
    assert "other.png, which is there already" in tomau(*stronger)
    assert (tmp_path / "other.png").read_bytes() == first
    assert "1 coloured, 0 skipped" in tomau(*stronger, "--force")
    assert (tmp_path / "other.png").read_bytes() != first
    assert "1 skipped" in tomau(*stronger)


def test_one_answer_for_two_photos_is_a_fault(tomau, tmp_path: Path, jpeg: bytes, gray: np.ndarray) -> None:
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "a.bmp").write_bytes(encoded(gray, "BMP"))
    (tmp_path / "album" / "a.bmp.jpg").write_bytes(jpeg)
    said = tomau("colorize", "album", "album/a.bmp", "-o", "coloured", code=1)
    assert "tomau: album/a.bmp.jpg: its output would have the same name as that of album/a.bmp" in said
    assert "1 coloured, 0 skipped, 1 failed" in said


def test_no_answer_is_written_where_none_can_be_recorded(tomau, tmp_path: Path, jpeg: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    (tmp_path / "coloured").mkdir()
    record_path(tmp_path / "coloured").symlink_to(tmp_path / "photo.jpg")
    record = record_path(tmp_path / "coloured")
    said = tomau("colorize", "photo.jpg", "-o", "coloured", code=1)
    assert said == f"tomau: {record} is not a plain file, so that outputs can't be recorded there; move it away\n"
    assert (tmp_path / "photo.jpg").read_bytes() == jpeg
    assert not list((tmp_path / "coloured").iterdir())


def test_a_name_in_another_encoding(tomau, tmp_path: Path, jpeg: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg)
    assert "1 coloured" in tomau("colorize", "album", "-o", "coloured")
    assert [os.fsencode(path.name) for path in (tmp_path / "coloured").glob("[!.]*")] == [b"caf\xe9.jpg"]


def test_a_folder_with_a_dot_in_its_name(tomau, tmp_path: Path, jpeg: bytes) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg)
    tomau("colorize", "photo.jpg", "-o", "2024.05/")
    tomau("colorize", "photo.jpg", "-o", "album.2024")
    assert (tmp_path / "2024.05" / "photo.jpg").is_file()
    assert (tmp_path / "album.2024" / "photo.jpg").is_file()


def test_several_files_into_a_new_folder(tomau, album: Path, tmp_path: Path) -> None:
    tomau(
        "colorize", "album/beach.tif", "album/holiday.jpg", "-o", "new/folder", "--format", "webp", "--max-side", "100"
    )
    answers = (tmp_path / "new" / "folder").glob("[!.]*")
    found = {path.name: max(decoded(path.read_bytes()).shape) for path in answers}
    assert found == {"beach.tif.webp": 100, "holiday.jpg.webp": 100}

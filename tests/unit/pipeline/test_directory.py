"""Find the photos of files and folders, and colour them."""

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from service.inference.executor import EngineError
from service.pipeline import directory
from service.pipeline.colorizer import ColoredImage, Colorizer
from service.pipeline.options import Options
from service.pipeline.output_folder import RECORD, record_path
from tests.conftest import encoded
from tests.unit.pipeline.conftest import contents, photo, run


@pytest.mark.parametrize(
    ("error", "said", "logged"),
    [
        (EngineError("model compact returned nonsense"), "model compact returned nonsense", False),
        (ZeroDivisionError("by nothing"), "an internal error of tomau: ZeroDivisionError('by nothing')", True),
    ],
)
def test_a_fault_with_one_photo_is_nothing_to_the_others(
    colorizer: Colorizer,
    album: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    said: str,
    logged: bool,
) -> None:
    second = album / "b.jpg"
    second.write_bytes(second.read_bytes() + b"the second")
    colorize = colorizer.colorize

    def fails(data: bytes, options: Options) -> ColoredImage:
        if data.endswith(b"the second"):
            raise error
        return colorize(data, options)

    monkeypatch.setattr(colorizer, "colorize", fails)
    with caplog.at_level(logging.ERROR):
        outcomes = list(
            directory.colorize_all(colorizer, directory.find_jobs([album], album.parent / "out"), Options(), threads=2)
        )
    assert [(outcome.photo.name, outcome.reason) for outcome in outcomes] == [
        ("a.jpg", ""),
        ("b.jpg", said),
        ("c.jpg", ""),
        ("d.jpg", ""),
    ]
    assert sorted(path.name for path in (album.parent / "out").glob("[!.]*")) == ["a.jpg", "c.jpg", "d.jpg"]
    assert (str(second) in caplog.text) == logged


def test_a_second_run_does_only_what_is_missing(colorizer: Colorizer, album: Path) -> None:
    out = album.parent / "out"
    jobs = directory.find_jobs([album], out)
    assert not any(outcome.skipped for outcome in directory.colorize_all(colorizer, jobs, Options(), threads=2))
    first = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*")}
    (out / "c.jpg").unlink()
    outcomes = list(directory.colorize_all(colorizer, jobs, Options(), threads=2))
    assert [outcome.skipped for outcome in outcomes] == [True, True, False, True]
    now = {path: path.stat().st_mtime_ns for path in first}
    assert {path.name for path, time in now.items() if time != first[path]} == {"c.jpg"}


def test_photos_that_are_added_later_are_coloured(colorizer: Colorizer, album: Path, gray: np.ndarray) -> None:
    out = album.parent / "out"
    (album / "b.png").write_bytes(encoded(gray, "PNG"))
    (album / "c.jpg").unlink()
    assert run(colorizer, [album], out) == ["a.jpg", "b.jpg", "b.png", "d.jpg"]
    (album / "b.bmp").write_bytes(encoded(gray, "BMP"))
    (album / "c.jpg").write_bytes((album / "a.jpg").read_bytes())
    assert run(colorizer, [album], out) == ["skipped", "b.bmp.jpg", "skipped", "skipped", "c.jpg", "skipped"]
    assert set(run(colorizer, [album], out)) == {"skipped"}


def test_another_format_is_another_answer(colorizer: Colorizer, album: Path) -> None:
    out = album.parent / "out"
    run(colorizer, [album], out)
    assert run(colorizer, [album], out, format="webp") == [f"{name}.jpg.webp" for name in "abcd"]
    assert set(run(colorizer, [album], out, format="webp")) == {"skipped"}


def test_two_photos_of_one_name(colorizer: Colorizer, album: Path, tmp_path: Path, jpeg: bytes) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.jpg").write_bytes(jpeg)
    out = tmp_path / "out"
    *outcomes, last = run(colorizer, [album, other], out)
    assert outcomes == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert str(album / "a.jpg") in last


def test_answers_within_the_album_are_not_coloured_again(colorizer: Colorizer, album: Path) -> None:
    out = album / "coloured"
    assert run(colorizer, [album], out) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert run(colorizer, [album], out) == ["skipped"] * 4
    with pytest.raises(directory.OutputError, match="the folder with the photos"):
        directory.find_jobs([album], album)


def test_linked_folders_and_empty_ones(colorizer: Colorizer, album: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    out = tmp_path / "out"
    assert run(colorizer, [other], out) == ["the folder has no photos"]
    (other / "1931").symlink_to(album)
    (album / "back").symlink_to(other)
    assert run(colorizer, [other], out) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert (out / "1931" / "a.jpg").is_file()


@pytest.mark.parametrize("name", ["Photo 1. May 1950", "a" * 245 + ".jpg"])
def test_unusual_names(colorizer: Colorizer, tmp_path: Path, jpeg: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(jpeg)
    expected = name if name.endswith(".jpg") else f"{name}.jpg"
    assert run(colorizer, [tmp_path / name], tmp_path / "out") == [expected]
    assert run(colorizer, [tmp_path / name], tmp_path / "out") == ["skipped"]


def test_an_unreadable_folder_is_told(
    colorizer: Colorizer, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = album / "closed"
    closed.mkdir()
    scan = os.scandir

    def scandir(path: str) -> object:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    *outcomes, last = run(colorizer, [album], tmp_path / "out")
    assert outcomes == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert "Permission denied" in last
    assert str(closed) in last


def test_names_that_are_only_much_alike(colorizer: Colorizer, tmp_path: Path, gray: np.ndarray) -> None:
    names = ["a.bmp", "a.bmp.png", "a.jpg", "a.jpg.png", "a.tif", "a.tiff", "a.webp", "a.webp.jpg", "a.webp.png"]
    for name in names:
        (tmp_path / name).write_bytes(photo(name, gray[:50, :50]))
    done = run(colorizer, [tmp_path / name for name in names], tmp_path / "out")
    assert done == ["a.bmp.jpg", *names[1:]]
    assert set(run(colorizer, [tmp_path / name for name in names], tmp_path / "out")) == {"skipped"}


def test_one_name_in_two_folders(colorizer: Colorizer, album: Path, tmp_path: Path) -> None:
    for folder in ("1931", "1932"):
        (album / folder).mkdir()
        (album / folder / "a.jpg").write_bytes((album / "a.jpg").read_bytes())
    out = tmp_path / "out"
    assert run(colorizer, [album], out) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "a.jpg", "a.jpg"]
    assert run(colorizer, [album], out) == ["skipped"] * 6
    # The folder can be moved with its record, and a part of it can be coloured again.
    record_path(out).rename(out / RECORD)
    out = out.rename(tmp_path / "moved")
    assert run(colorizer, [album], out) == ["skipped"] * 6
    assert run(colorizer, [album / "1931"], out / "1931", force=True) == ["a.jpg"]
    assert {str(path.relative_to(out)) for path in out.rglob("a.jpg")} == {"a.jpg", "1931/a.jpg", "1932/a.jpg"}


def test_what_is_no_photo_keeps_no_name_from_one(colorizer: Colorizer, tmp_path: Path, jpeg: bytes) -> None:
    (tmp_path / "a.jpg").write_text("words")
    (tmp_path / "A.JPG").write_bytes(jpeg)
    fault, done = run(colorizer, [tmp_path / "a.jpg", tmp_path / "A.JPG"], tmp_path / "out")
    assert "not a JPEG" in fault
    assert done == "A.JPG"


def test_a_file_that_is_given_twice_is_coloured_once(
    colorizer: Colorizer, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(album)
    (tmp_path / "soft.jpg").symlink_to(album / "a.jpg")
    (tmp_path / "hard.jpg").hardlink_to(album / "a.jpg")
    (tmp_path / "linked").symlink_to(album)
    a = Path("a.jpg")
    given = [a, a, Path("./a.jpg"), album / "a.jpg", tmp_path / "soft.jpg", tmp_path / "hard.jpg"]
    assert run(colorizer, given, tmp_path / "files") == ["a.jpg"]
    given = [*given[3:], album, tmp_path / "linked", album / "b.jpg"]
    assert run(colorizer, given, tmp_path / "folders") == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert f"{tmp_path / 'hard.jpg'} is the same file as {album / 'a.jpg'}" in caplog.text


def test_what_is_skipped_is_reported(
    colorizer: Colorizer, album: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("scan001", "letter.pdf", "a.jpg.bak", "b.BAK", ".hidden.bak"):
        (album / name).write_bytes(b"no photo")
    assert run(colorizer, [album], tmp_path / "out") == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert "4 skipped" in caplog.text
    assert "2 .bak, 1 .pdf, 1 no extension" in caplog.text


def test_a_link_that_leads_nowhere_is_a_fault(colorizer: Colorizer, album: Path, tmp_path: Path) -> None:
    (album / "e.jpg").symlink_to(tmp_path / "nothing")
    assert run(colorizer, [album], tmp_path / "out")[-1] == "the link is broken"


def test_answers_of_another_run_are_no_photos(
    colorizer: Colorizer, album: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(colorizer, [album], album / "coloured")
    (album / "coloured" / "foreign.jpg").write_bytes((album / "a.jpg").read_bytes() + b"another")
    done = run(colorizer, [album], tmp_path / "out")
    assert done == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "foreign.jpg"]
    assert "4 outputs of another run" in caplog.text


def test_copies_are_photos_of_their_own(colorizer: Colorizer, album: Path, tmp_path: Path) -> None:
    # The photos of the album have the same bytes.
    out = tmp_path / "out"
    assert run(colorizer, [album], out) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert run(colorizer, [album], out, force=True) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert len(contents(out)) == 4


def test_files_without_numbers(
    colorizer: Colorizer, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems do not number their files. Files are still told apart, and found to be the same."""
    stat = Path.stat

    def numberless(path: Path, **options: object) -> os.stat_result:
        found = stat(path, **options)
        return os.stat_result((found.st_mode, 0, *found[2:]))

    monkeypatch.setattr(Path, "stat", numberless)
    given = [album, album / ".." / "album" / "a.jpg"]
    assert run(colorizer, given, tmp_path / "out") == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_hidden_files_and_folders_of_systems_are_skipped(colorizer: Colorizer, album: Path, tmp_path: Path) -> None:
    data = (album / "a.jpg").read_bytes()
    folders = [".thumbnails", "@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", "1931/@eaDir", "1931/.x"]
    for folder in folders:
        (album / folder / "deep").mkdir(parents=True)
        (album / folder / "deep" / "a.jpg").write_bytes(data)
    hidden = [album / "._a.jpg", album / ".a.jpg", album / "1931" / "._b.jpg"]
    for path in hidden:
        path.write_bytes(data)
    out = tmp_path / "out"
    assert run(colorizer, [album], out) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert run(colorizer, hidden, out) == ["._a.jpg", ".a.jpg", "._b.jpg"]
    assert run(colorizer, [album / "@eaDir"], tmp_path / "named") == ["a.jpg"]
    assert run(colorizer, [album / "1931"], tmp_path / "none") == ["the folder has no photos"]

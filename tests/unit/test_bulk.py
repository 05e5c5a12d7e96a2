import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from service import bulk
from service.catalog import Catalog
from service.colorizer import Answer, Colorizer, Options
from service.executor import EngineError
from service.settings import Settings
from tests.conftest import encoded


@pytest.fixture
def colorizer(models: Path) -> Colorizer:
    settings = Settings(models=models, device="cpu")
    return Colorizer(Catalog(settings), settings)


@pytest.fixture
def album(tmp_path: Path, jpeg: bytes) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for name in "abcd":
        (folder / f"{name}.jpg").write_bytes(jpeg)
    return folder


@pytest.mark.parametrize(
    ("error", "said", "logged"),
    [
        (EngineError("model compact answered nonsense"), "model compact answered nonsense", False),
        (ZeroDivisionError("by nothing"), "a fault of tomau's own: ZeroDivisionError('by nothing')", True),
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

    def fails(data: bytes, options: Options) -> Answer:
        if data.endswith(b"the second"):
            raise error
        return colorize(data, options)

    monkeypatch.setattr(colorizer, "colorize", fails)
    with caplog.at_level(logging.ERROR):
        outcomes = list(bulk.colorize(colorizer, bulk.jobs([album], album.parent / "out"), Options(), threads=2))
    assert [(outcome.photo.name, outcome.reason) for outcome in outcomes] == [
        ("a.jpg", ""),
        ("b.jpg", said),
        ("c.jpg", ""),
        ("d.jpg", ""),
    ]
    assert sorted(path.name for path in (album.parent / "out").iterdir()) == ["a.jpg", "c.jpg", "d.jpg"]
    assert (str(second) in caplog.text) == logged


def test_a_second_run_does_only_what_is_missing(colorizer: Colorizer, album: Path) -> None:
    out = album.parent / "out"
    jobs = bulk.jobs([album], out)
    assert not any(outcome.skipped for outcome in bulk.colorize(colorizer, jobs, Options(), threads=2))
    first = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / "c.jpg").unlink()
    outcomes = list(bulk.colorize(colorizer, jobs, Options(), threads=2))
    assert [outcome.skipped for outcome in outcomes] == [True, True, False, True]
    assert {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != "c.jpg"} == {
        path: time for path, time in first.items() if path.name != "c.jpg"
    }


def run(colorizer: Colorizer, given: list[Path], out: Path, *, force: bool = False, **options: str) -> list[str]:
    """What became of each photo: the name of its answer, "skipped", or the reason against it."""
    jobs = bulk.jobs(given, out)
    outcomes = bulk.colorize(colorizer, jobs, Options.model_validate(options), threads=2, force=force)
    return [outcome.reason or ("skipped" if outcome.skipped else outcome.written.name) for outcome in outcomes]


def test_no_photo_is_ever_written_over(colorizer: Colorizer, album: Path, jpeg: bytes, gray: np.ndarray) -> None:
    (album / "a.bmp").write_bytes(encoded(gray, "BMP"))
    (album / "a.bmp.jpg").write_bytes(jpeg + b"an original")
    before = {path: path.read_bytes() for path in album.iterdir()}
    outcomes = run(colorizer, sorted(album.iterdir()), album, force=True)
    assert all("it would be overwritten by an answer" in outcome for outcome in outcomes)
    assert {path: path.read_bytes() for path in album.iterdir()} == before


def test_a_photo_that_is_not_what_its_name_says_writes_over_none(
    colorizer: Colorizer, album: Path, jpeg: bytes, gray: np.ndarray
) -> None:
    out = album.parent / "out"
    out.mkdir()
    (album / "e.jpg").write_bytes(encoded(gray, "PNG"))
    precious = out / "e.jpg.png"
    precious.write_bytes(b"precious")
    assert run(colorizer, [album / "e.jpg"], out) == ["skipped"]
    assert "overwritten" in run(colorizer, [album / "e.jpg", precious], out, force=True)[0]
    assert precious.read_bytes() == b"precious"


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
    with pytest.raises(bulk.OutputError, match="where the photos are"):
        bulk.jobs([album], album)


def test_linked_folders_and_empty_ones(colorizer: Colorizer, album: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    out = tmp_path / "out"
    assert run(colorizer, [other], out) == ["there is no photo in it"]
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

import logging
from pathlib import Path

import pytest

from service import bulk
from service.catalog import Catalog
from service.colorizer import Answer, Colorizer, Options
from service.executor import EngineError
from service.settings import Settings


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

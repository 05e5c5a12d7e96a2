import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.inference.executor import EngineError
from service.inference.registry import ModelRegistry
from service.pipeline import directory
from service.pipeline.colorizer import ColoredImage, Colorizer
from service.pipeline.options import Options
from service.pipeline.output_folder import RECORD, record_path
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


def run(colorizer: Colorizer, given: list[Path], out: Path, *, force: bool = False, **options: str) -> list[str]:
    """What became of each photo: the name of its answer, "skipped", or the reason against it."""
    jobs = directory.find_jobs(given, out)
    outcomes = directory.colorize_all(colorizer, jobs, Options.model_validate(options), threads=2, force=force)
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
    for force in (False, True):
        assert f"{precious} is there already" in run(colorizer, [album / "e.jpg"], out, force=force)[0]
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
    with pytest.raises(directory.OutputError, match="where the photos are"):
        directory.find_jobs([album], album)


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


BOTH = pytest.mark.parametrize("force", [False, True])
# The first keeps its name, the second would get the name of the first.
CLASHES = [
    ("a.jpg.png", "a.jpg", {"format": "png"}),
    ("a.jpg", "A.JPG", {}),
    ("Jos\u00e9.jpg", "Jose\u0301.jpg", {}),
    ("STRASSE.jpg", "stra\u00dfe.jpg", {"format": "png"}),
    ("a.bmp.jpg", "a.bmp", {}),
    ("a.gif.jpg", "a.gif", {}),
    ("a.avif.jpg", "a.avif", {}),
    ("a.avif.jpg", "A.avif", {"if_color": "keep"}),
    ("a.jpe.webp", "a.jpe", {"format": "webp"}),
]


def photo(name: str, pixels: np.ndarray) -> bytes:
    """A photo of the format that its name says."""
    formats = {"jpg": "JPEG", "jpe": "JPEG", "tif": "TIFF"}
    ending = name.rsplit(".", 1)[1].lower()
    return encoded(pixels, formats.get(ending, ending.upper()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


@BOTH
@pytest.mark.parametrize("is_turned", [False, True])
@pytest.mark.parametrize(("one", "two", "options"), CLASHES)
def test_two_photos_never_get_one_answer(
    colorizer: Colorizer,
    tmp_path: Path,
    gray: np.ndarray,
    one: str,
    two: str,
    options: dict[str, str],
    is_turned: bool,
    force: bool,
) -> None:
    given = [tmp_path / "1" / one, tmp_path / "2" / two]
    for path in given:
        path.parent.mkdir()
        path.write_bytes(photo(path.name, gray[: 40 + len(path.parent.name + path.name)]))
    first, second = reversed(given) if is_turned else given
    out = tmp_path / "out"
    done, fault = run(colorizer, [first, second], out, force=force, **options)
    assert done in contents(out)
    assert len(contents(out)) == 1
    assert str(first) in fault
    assert "it into another folder" in fault
    # A later run with the second alone leaves what is there, too.
    before = contents(out)
    run(colorizer, [second], out, force=force, **options)
    assert before.items() <= contents(out).items()


@BOTH
def test_a_photo_that_is_not_what_its_name_says_has_the_name_of_its_answer(
    colorizer: Colorizer, tmp_path: Path, gray: np.ndarray, force: bool
) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(gray, "PNG"))
    (tmp_path / "a.jpg.png").write_bytes(encoded(gray[:50], "PNG"))
    given = [tmp_path / "a.jpg", tmp_path / "a.jpg.png"]
    done, fault = run(colorizer, given, tmp_path / "out", force=force)
    assert done == "a.jpg.png"
    assert str(given[0]) in fault


@BOTH
def test_an_answer_of_a_rare_format_takes_no_name_of_another(
    colorizer: Colorizer, tmp_path: Path, gray: np.ndarray, force: bool
) -> None:
    clear = Image.fromarray(gray[:50, :50])
    clear.save(tmp_path / "a.gif", transparency=int(gray[0, 0]))
    (tmp_path / "a.gif.png").write_bytes(encoded(gray, "PNG"))
    fault, done = run(colorizer, [tmp_path / "a.gif", tmp_path / "a.gif.png"], tmp_path / "out", force=force)
    assert done == "a.gif.png"
    assert str(tmp_path / "a.gif.png") in fault
    assert run(colorizer, [tmp_path / "a.gif"], tmp_path / "alone", force=force) == ["a.gif.png"]
    assert run(colorizer, [tmp_path / "a.gif"], tmp_path / "alone") == ["skipped"]


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
    # The folder can be moved with its record, and a part of it is done again alone.
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


@BOTH
@pytest.mark.parametrize("metadata", ["keep", "strip"])
def test_only_its_own_answers_are_replaced(
    colorizer: Colorizer, album: Path, tmp_path: Path, metadata: str, force: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.jpg").write_bytes(b"foreign")
    assert run(colorizer, [album], out, metadata=metadata)[1:] == ["b.jpg", "c.jpg", "d.jpg"]
    # A person turned one, and put a copy of another one into the place of a third.
    with Image.open(out / "b.jpg") as answer:
        answer.rotate(90).save(out / "b.jpg")
    (album / "e.jpg").write_bytes((album / "c.jpg").read_bytes() + b"another photo")
    (out / "e.jpg").write_bytes((out / "c.jpg").read_bytes())
    before = contents(out)
    outcomes = run(colorizer, [album], out, force=force, metadata=metadata, strength="0.5")
    for outcome, name in zip((outcomes[0], outcomes[1], outcomes[4]), ("a.jpg", "b.jpg", "e.jpg"), strict=True):
        assert f"{out / name} is there already" in outcome
    assert outcomes[2:4] == (["c.jpg", "d.jpg"] if force else ["skipped", "skipped"])
    changed = {name for name, data in contents(out).items() if data != before[name]}
    assert changed == ({"c.jpg", "d.jpg"} if force else set())
    # What was written is known, whatever the options.
    assert run(colorizer, [album], out)[2:4] == ["skipped", "skipped"]


@BOTH
def test_a_photo_that_has_changed_does_not_replace_its_answer(
    colorizer: Colorizer, album: Path, tmp_path: Path, gray: np.ndarray, force: bool
) -> None:
    out = tmp_path / "out"
    run(colorizer, [album], out)
    before = contents(out)
    (album / "c.jpg").write_bytes(encoded(gray[:50], "JPEG"))
    assert f"{out / 'c.jpg'} is there already" in run(colorizer, [album], out, force=force)[2]
    assert contents(out) == before
    (out / "c.jpg").unlink()
    assert run(colorizer, [album], out, force=force)[2] == "c.jpg"


@BOTH
def test_an_album_into_the_folder_of_another_one(
    colorizer: Colorizer, album: Path, tmp_path: Path, gray: np.ndarray, force: bool
) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    other.mkdir()
    (other / "a.jpg").write_bytes(encoded(gray[:50], "JPEG"))
    (other / "z.jpg").write_bytes(encoded(gray[:50], "JPEG"))
    run(colorizer, [album], out)
    before = contents(out)
    fault, done = run(colorizer, [other], out, force=force)
    assert f"{out / 'a.jpg'} is there already" in fault
    assert done == "z.jpg"
    assert before.items() <= contents(out).items()


@BOTH
def test_what_comes_while_a_photo_is_coloured_is_left(
    colorizer: Colorizer, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    out = tmp_path / "out"
    run(colorizer, [album / "b.jpg"], out)
    colorize = colorizer.colorize

    def comes_first(data: bytes, options: Options) -> ColoredImage:
        (out / "a.jpg").write_bytes(b"foreign")
        (out / "b.jpg").write_bytes(b"edited")
        return colorize(data, options)

    monkeypatch.setattr(colorizer, "colorize", comes_first)
    outcomes = run(colorizer, [album / "a.jpg", album / "b.jpg"], out, force=force)
    assert f"{out / 'a.jpg'} is there already" in outcomes[0]
    assert outcomes[1] == "skipped" or f"{out / 'b.jpg'} is there already" in outcomes[1]
    assert contents(out) == {"a.jpg": b"foreign", "b.jpg": b"edited"}


@BOTH
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_an_original_that_is_linked_from_the_answers(
    colorizer: Colorizer, album: Path, tmp_path: Path, link: object, force: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    link(album / "b.jpg", out / "a.jpg")
    before = contents(album)
    assert "it would be overwritten" in run(colorizer, [album], out, force=force)[0]
    assert contents(album) == before
    assert (out / "a.jpg").samefile(album / "b.jpg")


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


def test_what_is_passed_over_is_told(
    colorizer: Colorizer, album: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("scan001", "letter.pdf", "a.jpg.bak", "b.BAK", ".hidden.bak"):
        (album / name).write_bytes(b"no photo")
    assert run(colorizer, [album], tmp_path / "out") == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert "4 files are passed over" in caplog.text
    assert "2 .bak, 1 .pdf, 1 no extension" in caplog.text


def test_a_link_that_leads_nowhere_is_a_fault(colorizer: Colorizer, album: Path, tmp_path: Path) -> None:
    (album / "e.jpg").symlink_to(tmp_path / "nothing")
    assert run(colorizer, [album], tmp_path / "out")[-1] == "the link leads nowhere"


def test_answers_of_another_run_are_no_photos(
    colorizer: Colorizer, album: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(colorizer, [album], album / "coloured")
    (album / "coloured" / "foreign.jpg").write_bytes((album / "a.jpg").read_bytes() + b"another")
    done = run(colorizer, [album], tmp_path / "out")
    assert done == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "foreign.jpg"]
    assert "4 answers of another run" in caplog.text


def test_copies_are_photos_of_their_own(colorizer: Colorizer, album: Path, tmp_path: Path) -> None:
    # Those of the album have the same bytes.
    out = tmp_path / "out"
    assert run(colorizer, [album], out) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert run(colorizer, [album], out, force=True) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert len(contents(out)) == 4


def test_files_without_numbers(
    colorizer: Colorizer, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems have none: that makes no two files the same, and no file two."""
    stat = Path.stat

    def numberless(path: Path, **options: object) -> os.stat_result:
        found = stat(path, **options)
        return os.stat_result((found.st_mode, 0, *found[2:]))

    monkeypatch.setattr(Path, "stat", numberless)
    given = [album, album / ".." / "album" / "a.jpg"]
    assert run(colorizer, given, tmp_path / "out") == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_hidden_files_and_folders_of_systems_are_passed_over(colorizer: Colorizer, album: Path, tmp_path: Path) -> None:
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
    assert run(colorizer, [album / "1931"], tmp_path / "none") == ["there is no photo in it"]


@BOTH
def test_a_record_that_was_lost(colorizer: Colorizer, album: Path, tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    run(colorizer, [album], out)
    before = contents(out)
    record_path(out).write_bytes(b"\xff\0garbage\n")
    (album / "e.jpg").write_bytes((album / "a.jpg").read_bytes())
    *faults, done = run(colorizer, [album], out, force=force)
    assert all("is there already" in fault for fault in faults)
    assert done == "e.jpg"
    assert before.items() <= contents(out).items()
    assert run(colorizer, [album / "e.jpg"], out) == ["skipped"]

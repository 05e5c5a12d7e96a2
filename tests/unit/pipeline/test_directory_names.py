"""The names of outputs, and which files are never replaced."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.pipeline.colorizer import ColoredImage, Colorizer
from service.pipeline.options import Options
from service.pipeline.output_folder import record_path
from tests.conftest import encoded
from tests.unit.pipeline.conftest import contents, photo, run

BOTH = pytest.mark.parametrize("force", [False, True])
# The output of the second photo would have the name of the first output.
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


def test_no_photo_is_ever_written_over(colorizer: Colorizer, album: Path, jpeg: bytes, gray: np.ndarray) -> None:
    (album / "a.bmp").write_bytes(encoded(gray, "BMP"))
    (album / "a.bmp.jpg").write_bytes(jpeg + b"an original")
    before = {path: path.read_bytes() for path in album.iterdir()}
    outcomes = run(colorizer, sorted(album.iterdir()), album, force=True)
    assert all("is a photo, which the output would replace" in outcome for outcome in outcomes)
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
        assert f"{precious} exists already" in run(colorizer, [album / "e.jpg"], out, force=force)[0]
    assert "would replace" in run(colorizer, [album / "e.jpg", precious], out, force=True)[0]
    assert precious.read_bytes() == b"precious"


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
    # A later run with the second one alone keeps the existing files, too.
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


@BOTH
@pytest.mark.parametrize("metadata", ["keep", "strip"])
def test_only_its_own_answers_are_replaced(
    colorizer: Colorizer, album: Path, tmp_path: Path, metadata: str, force: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.jpg").write_bytes(b"foreign")
    assert run(colorizer, [album], out, metadata=metadata)[1:] == ["b.jpg", "c.jpg", "d.jpg"]
    # A user rotated one output, and replaced another one by a copy of a third.
    with Image.open(out / "b.jpg") as answer:
        answer.rotate(90).save(out / "b.jpg")
    (album / "e.jpg").write_bytes((album / "c.jpg").read_bytes() + b"another photo")
    (out / "e.jpg").write_bytes((out / "c.jpg").read_bytes())
    before = contents(out)
    outcomes = run(colorizer, [album], out, force=force, metadata=metadata, strength="0.5")
    for outcome, name in zip((outcomes[0], outcomes[1], outcomes[4]), ("a.jpg", "b.jpg", "e.jpg"), strict=True):
        assert f"{out / name} exists already" in outcome
    assert outcomes[2:4] == (["c.jpg", "d.jpg"] if force else ["skipped", "skipped"])
    changed = {name for name, data in contents(out).items() if data != before[name]}
    assert changed == ({"c.jpg", "d.jpg"} if force else set())
    # Existing outputs are known, whatever the options.
    assert run(colorizer, [album], out)[2:4] == ["skipped", "skipped"]


@BOTH
def test_a_photo_that_has_changed_does_not_replace_its_answer(
    colorizer: Colorizer, album: Path, tmp_path: Path, gray: np.ndarray, force: bool
) -> None:
    out = tmp_path / "out"
    run(colorizer, [album], out)
    before = contents(out)
    (album / "c.jpg").write_bytes(encoded(gray[:50], "JPEG"))
    assert f"{out / 'c.jpg'} exists already" in run(colorizer, [album], out, force=force)[2]
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
    assert f"{out / 'a.jpg'} exists already" in fault
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
    assert f"{out / 'a.jpg'} exists already" in outcomes[0]
    assert outcomes[1] == "skipped" or f"{out / 'b.jpg'} exists already" in outcomes[1]
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
    assert "which the output would replace" in run(colorizer, [album], out, force=force)[0]
    assert contents(album) == before
    assert (out / "a.jpg").samefile(album / "b.jpg")


@BOTH
def test_a_record_that_was_lost(colorizer: Colorizer, album: Path, tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    run(colorizer, [album], out)
    before = contents(out)
    record_path(out).write_bytes(b"\xff\0garbage\n")
    (album / "e.jpg").write_bytes((album / "a.jpg").read_bytes())
    *faults, done = run(colorizer, [album], out, force=force)
    assert all("exists already" in fault for fault in faults)
    assert done == "e.jpg"
    assert before.items() <= contents(out).items()
    assert run(colorizer, [album / "e.jpg"], out) == ["skipped"]

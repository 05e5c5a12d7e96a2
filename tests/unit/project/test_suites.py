"""The harness that tries the image suites of other projects finds what it is for."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import encoded
from tests.suites import judge, report, sources
from tests.suites.known import known
from tests.suites.reference import difference, facts
from tests.suites.worker import Worker

SOUND = {"kind": "png", "pillow": {"format": "PNG"}, "tiff": None, "jpeg": None, "bmp": None, "is_deep": False}
SOUND |= {"has_frames": False, "decoded_by": ["opencv", "pillow"], "size": [4, 3], "differences": {}}
COST = {"cpu": 0.1, "grown": 0, "stderr": ""}
EQUAL, FAR = {"luma": 0.1, "luma99": 1.0, "alpha": 0.0}, {"luma": 30.0, "luma99": 90.0, "alpha": 0.0}


def wrong(ours: dict[str, object], **other: object) -> str:
    return "; ".join(judge.judge({**COST, **ours}, {**SOUND, **other}).wrong)


def test_a_coloured_file_needs_a_decoder_that_agrees_and_is_not_the_services_own() -> None:
    assert not wrong({"status": 200}, differences={"opencv": EQUAL, "pillow": FAR})
    assert "opencv: luma 30.0" in wrong({"status": 200}, differences={"opencv": FAR, "pillow": EQUAL})
    assert "4x4 pixels, not 4x3" in wrong({"status": 200}, differences={"opencv": {"size": [4, 4]}})
    assert "no other decoder" in wrong({"status": 200})


@pytest.mark.parametrize(
    ("detail", "other", "is_true"),
    [
        ("the TIFF has several pages; send each", {"tiff": {"pages": 2}}, True),
        ("the TIFF has several pages; send each", {"tiff": {"pages": 1}}, False),
        ("the TIFF has 12 bits a channel", {"tiff": {"bits": [12]}}, True),
        ("the TIFF has 12 bits a channel", {"tiff": {"bits": [8], "bitspersample": 8}}, False),
        ("the file is not a JPEG or PNG image", {"pillow": {"format": "TGA"}}, True),
        ("the file is not a JPEG or PNG image", {}, False),
        ("the file is ugly", {}, False),
    ],
)
def test_the_reason_of_a_refusal_must_be_true(detail: str, other: dict[str, object], is_true: bool) -> None:
    assert bool(wrong({"status": 415, "code": "unsupported_type", "detail": detail}, **other)) is not is_true


def test_damaged_is_said_of_what_is_damaged() -> None:
    refusal = {"status": 400, "code": "unreadable_image", "detail": "the PNG file is damaged or cut short (CRC)"}
    damaged = {"format": "PNG", "damage": "OSError: truncated"}
    assert not wrong(refusal, pillow=damaged)
    assert wrong(refusal) == "400 'the PNG file is damaged or cut short (CRC)': Pillow finds no damage"
    assert "opencv can decode it" in wrong(refusal, pillow=damaged, decoded_by=["opencv"])
    assert "not damaged" in wrong(refusal | {"detail": "damaged (unsupported depth)"}, pillow=damaged)


def test_faults_and_costs_are_findings() -> None:
    assert "the process died" in wrong({"died": "signal SIGSEGV"})
    assert "500" in wrong({"status": 500, "detail": "Traceback"})
    assert "standard error" in wrong({"status": 200, "stderr": "TIFFRead: bad"}, differences={"opencv": EQUAL})
    assert "MiB" in wrong({"status": 200, "grown": 2 << 30}, differences={"opencv": EQUAL})


def test_the_reference_sees_a_difference_in_luma_and_alpha() -> None:
    picture = np.full((3, 4, 2), 100, np.float32)
    lighter, clearer = picture + np.float32([5, 0]), picture - np.float32([0, 50])
    assert difference(picture, lighter)["luma"] == 5
    assert difference(picture, clearer)["alpha"] == 50
    assert difference(picture, picture.transpose(1, 0, 2)) == {"size": [3, 4]}


def test_facts_of_a_file(gray: np.ndarray) -> None:
    assert facts(encoded(gray, "TIFF"))["tiff"]["bits"] == [8]
    assert facts(encoded(gray, "BMP"))["bmp"]["size"] == [gray.shape[1], gray.shape[0]]
    assert facts(encoded(gray, "JPEG"))["jpeg"] == {"frame": 0xC0, "bits": 8}
    assert "error" in facts(b"no picture")["pillow"]


def test_a_worker_that_dies_is_told_and_replaced(tmp_path: Path, gray: np.ndarray) -> None:
    photo, answer = tmp_path / "photo.png", tmp_path / "answer.png"
    photo.write_bytes(encoded(gray, "PNG"))
    cv2.imwrite(str(answer), gray)
    worker = Worker("tests.suites.reference")
    try:
        died = worker.ask({"path": str(tmp_path / "none"), "answer": str(answer)})
        assert died["died"] == "exit status 1"
        assert "FileNotFoundError" in died["stderr"]
        found = worker.ask({"path": str(photo), "answer": str(answer)})
        assert found["differences"]["pillow"] == {"luma": 0.0, "luma99": 0.0, "alpha": 0.0}
        assert found["stderr"] == ""
    finally:
        worker.stop()


def test_image_files_are_found_by_content_or_extension_and_once(tmp_path: Path, jpeg: bytes) -> None:
    suite = sources.SUITES[0]
    folder = tmp_path / "pillow-1" / "images"
    folder.mkdir(parents=True)
    for name, data in (("a", jpeg), ("b.jpg", jpeg), ("c.tga", b"x"), ("d.txt", b"words")):
        (folder / name).write_bytes(data)
    found = [path.name for path in sources.images(sources.Unpacked(suite, "1", tmp_path), set())]
    assert found == ["a", "c.tga"]


def test_each_known_difference_is_explained() -> None:
    names = {suite.name for suite in sources.SUITES}
    for entry in known():
        assert entry.suite in names
        assert entry.files
        assert entry.why.endswith(".")


def test_the_page_has_a_place_for_the_table() -> None:
    verdicts = [judge.Verdict("png", "coloured", ()), judge.Verdict("tiff", "415: the TIFF has N bits", ())]
    table = report.table({"Pillow": "1"}, verdicts)
    assert "| 1 | tiff | 415: the TIFF has N bits |" in table
    assert report.versions_line(table) == "The suites: Pillow 1; 2 different files."
    assert report.on_page().endswith(report.known_differences())

"""Safe names for the entries of a zip, and the zip as a stream."""

import gc
import io
import shutil
import struct
import subprocess
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.web.zip_stream import Archive, safe_stem, unique_stems


@pytest.mark.parametrize(
    ("sent", "stem"),
    [
        ("photo.jpg", "photo"),
        ("Grandmother, 1923 (front).TIFF", "Grandmother, 1923 (front)"),
        ("scan.2024.01", "scan.2024.01"),
        ("v1.jpg.png", "v1.jpg"),
        ("../../etc/passwd", "passwd"),
        ("/absolute/a.png", "a"),
        ("C:\\Users\\me\\a.png", "a"),
        ("\\\\server\\share\\b.webp", "b"),
        ("a.jpg:stream", "a.jpg_stream"),
        ("..", "photo"),
        (".", "photo"),
        ("", "photo"),
        ("///", "photo"),
        (".jpg", "photo"),
        (".bashrc", "bashrc"),
        ("...hidden.jpg", "hidden"),
        ("-rf.jpg", "rf"),
        ("end. . .jpg", "end"),
        ("a\x00b\x1f\x7f\u0085c.jpg", "ab c"),
        ("one\r\ntwo\tthree.jpg", "one two three"),
        ('what?<>|*".jpg', "what______"),
        ("gpj.\u202eexe.png", "gpj.exe"),
        ("a\uff0fb.jpg", "a_b"),
        ("CON", "_CON"),
        ("nul.jpg", "_nul"),
        ("Com1.scan.jpg", "_Com1.scan"),
        ("LPT\u00b9.jpg", "_LPT\u00b9"),
        ("console.jpg", "console"),
        ("Cafe\u0301.jpg", "Caf\u00e9"),
        ("\udcff.jpg", "photo"),
        ("祖母.jpg", "祖母"),
        ("x" * 300 + ".jpg", "x" * 180),
        ("祖" * 300, "祖" * 60),
        ("report.json", "report.json"),
    ],
)
def test_a_name_is_made_safe(sent: str, stem: str) -> None:
    assert safe_stem(sent) == stem


def test_names_that_meet_are_numbered_in_order() -> None:
    sent = ["a.jpg", "a.png", "A.JPG", "a-2.jpg", "Caf\u00e9", "CAFE\u0301", "stra\u00dfe", "STRASSE", "", ""]
    stems = ["a", "a-2", "A-3", "a-2-2", "Caf\u00e9", "CAF\u00c9-2", "stra\u00dfe", "STRASSE-2", "photo", "photo-2"]
    assert unique_stems(sent) == stems


@pytest.mark.parametrize(
    "sent",
    [["\ufdfa" * 60] * 1000, ["a" * 60, *(f"{'a' * 60}-{number}" for number in range(1000))] * 2, ["\u0344" * 160_000]],
    ids=["the same", "numbered already", "one long one"],
)
def test_names_take_no_more_than_linear_time(sent: list[str]) -> None:
    started = time.process_time()
    stems = unique_stems(sent)
    assert time.process_time() - started < 1
    assert len(set(stems)) == len(sent)


NAMES = st.one_of(
    st.text(max_size=30),
    st.text(alphabet='./\\:-~ \x00\u202e\u0301eEcCoOnN1"é祖', max_size=12),
    st.sampled_from(["con", "NUL.jpg", "a", "A", "..", "report.json", "x" * 400]),
)


@given(st.lists(NAMES, max_size=20))
@settings(max_examples=500, deadline=None)
def test_any_names_are_safe_and_differ(sent: list[str]) -> None:
    entries = [f"{stem}.jpg" for stem in unique_stems(sent)]
    assert len(entries) == len(sent)
    for entry in entries:
        assert len(entry.encode("utf-8")) <= 255
        assert not set(entry) & set('/\\:*?"<>|')
        assert entry[0] not in " .-"
        assert entry[:-4][-1] not in " ."
        assert not any(unicodedata.category(char).startswith("C") for char in entry)
        assert entry.split(".")[0].lower() not in {"con", "nul"}
    as_a_mac_sees_them = {unicodedata.normalize("NFD", entry.lower()) for entry in entries}
    as_windows_sees_them = {entry.upper() for entry in entries}
    assert len(as_a_mac_sees_them) == len(as_windows_sees_them) == len(entries)


def archive(**entries: bytes) -> bytes:
    made = Archive()
    return b"".join([made.add(name, data) for name, data in entries.items()] + [made.close()])


def test_an_archive_is_whole() -> None:
    entries = {"a.jpg": b"picture" * 1000, "祖母.png": b"", "report.json": b"{}"}
    read = zipfile.ZipFile(io.BytesIO(archive(**entries)))
    assert read.testzip() is None
    assert {name: read.read(name) for name in read.namelist()} == entries
    assert [info.external_attr >> 16 for info in read.infolist()] == [0o644] * 3


def test_an_entry_can_be_unpacked_before_the_archive_ends() -> None:
    """The sizes are in the header. If they followed the data, a client could not know where the data ends."""
    made = Archive()
    for name, data in (("a", b"first"), ("b", b"the second")):
        piece = made.add(name, data)
        signature, _, flags, method, *_, _crc, packed, unpacked, _, _ = struct.unpack("<IHHHHHIIIHH", piece[:30])
        assert (signature, flags & 8, method, packed, unpacked) == (0x04034B50, 0, 0, len(data), len(data))
        assert piece.endswith(name.encode() + data)


@pytest.mark.skipif(shutil.which("unzip") is None, reason="there is no unzip")
def test_unzip_finds_no_fault(tmp_path: Path) -> None:
    (tmp_path / "made.zip").write_bytes(archive(**{"a.jpg": b"picture", "é.jpg": b"another"}))
    ended = subprocess.run(["unzip", "-t", "made.zip"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("entries", [0, 1])
def test_an_archive_that_is_given_up_says_nothing(entries: int) -> None:
    """Garbage collection closes a ZipFile before or after the file that it writes. A warning fails the test."""
    given_up = Archive()
    for _ in range(entries):
        given_up.add("a", b"data")
    given_up.cycle = given_up
    del given_up
    gc.collect()

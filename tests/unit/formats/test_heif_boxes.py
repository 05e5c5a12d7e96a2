"""Tests of parsing the boxes of AVIF and HEIC files."""

import functools
import struct
import time

import pytest

from service.formats import heif_reader
from service.metadata import transfer
from service.metadata.transfer import Metadata
from tests.samples.metadata import chunk


def test_extents_of_a_heif_that_lie_over_one_another() -> None:
    content = b"\0\0\0\0II*\0" + bytes(30_000)
    infe = b"".join(
        struct.pack(">I4sBBHHH4s", 21, b"infe", 2, 0, 0, number, 0, kind) + b"\0"
        for number, kind in ((1, b"hvc1"), (2, b"Exif"))
    )

    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), kind) + body

    def whole(start: int) -> bytes:
        extents = struct.pack(">II", start, len(content)) * 100
        iloc = struct.pack(">IBBHHHH", 0, 0x44, 0, 1, 2, 0, 100) + extents
        meta = box(b"pitm", bytes(4) + b"\0\1") + box(b"iinf", bytes(4) + b"\0\2" + infe) + box(b"iloc", iloc)
        return box(b"ftyp", b"heic") + box(b"meta", bytes(4) + meta) + box(b"mdat", content)

    data = whole(len(whole(0)) - len(content))
    assert len(heif_reader.read(data).exif or b"") <= len(data)
    one = data.replace(struct.pack(">HHH", 2, 0, 100), struct.pack(">HHH", 2, 0, 1), 1)
    assert heif_reader.read(one).exif == content[4:]


@functools.cache
def hostile_heics() -> dict[str, bytes]:
    def meta(**boxes: bytes) -> bytes:
        own = {"pitm": bytes(4) + b"\0\1", "iinf": items, "iloc": places(b"\x44\0", 1)} | boxes
        return chunk(b"meta", bytes(4) + b"".join(chunk(kind.encode(), body) for kind, body in own.items()))

    def places(sizes: bytes, count: int, body: bytes = b"") -> bytes:
        return bytes(4) + sizes + struct.pack(">H", count) + body

    entry = chunk(b"infe", b"\2\0\0\0\0\2\0\0Exif\0")
    items = bytes(4) + b"\0\1" + entry
    many = bytes(4) + b"\xff\xff" + entry * 500_000
    repeated = struct.pack(">HHH", 2, 0, 65_535) + struct.pack(">II", 0, 4_000_000) * 65_535
    return {
        "nothing": b"",
        "boxes without end": struct.pack(">I4s", 8, b"free") * 5_000_000,
        "a box of 2^64 - 1 bytes": b"\0\0\0\1meta" + b"\xff" * 1000,
        "many items": meta(iinf=many),
        "many references": meta(iref=bytes(4) + chunk(b"cdsc", b"\0\2\xff\xff" + b"\0\1" * 65_535) * 300),
        "extents of no bytes": meta(iloc=places(b"\0\0", 65_535, struct.pack(">HHH", 2, 0, 65_535) * 65_535)),
        "extents that repeat": meta(iloc=places(b"\x44\0", 1, repeated)) + bytes(5_000_000),
        "an extent outside": meta(iloc=places(b"\x44\0", 1, struct.pack(">HHHII", 2, 0, 1, 2**32 - 1, 9))),
        "large words": meta(iloc=places(b"\xff\xff", 9, b"\xff" * 1000)),
        "no list of items": chunk(b"meta", bytes(4)),
        "many properties": meta(
            iprp=chunk(b"ipco", struct.pack(">I4s", 8, b"free") * 1_000_000)
            + chunk(b"ipma", bytes(4) + b"\xff" * 4 + (b"\0\2\xff" + bytes(255)) * 100_000)
        ),
    }


@pytest.mark.parametrize("name", list(hostile_heics()))
def test_hostile_boxes(name: str) -> None:
    data = hostile_heics()[name]
    started = time.monotonic()
    assert transfer.read(data, "heic") == Metadata()
    assert time.monotonic() - started < 2

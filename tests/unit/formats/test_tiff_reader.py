"""Tests of reading TIFF files and their metadata, hostile ones among them."""

import functools
import io
import struct
import time

import cv2
import numpy as np
import pytest
import tifffile

from service.formats import tiff_writer
from service.metadata import transfer
from service.metadata.transfer import Density, Metadata
from tests.samples.metadata import (
    IPTC,
    MAKER_NOTE,
    ORDERS,
    PACKET,
    answer,
    check_tags,
    encoded_image,
    loaded,
    noise,
    opened,
    scanner_tiff,
    written,
)


@ORDERS
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_a_scanner(order: str, big: bool) -> None:
    data = scanner_tiff(order, big=big)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), [[1, 2], [3, 4]])
    found = transfer.read(data, "tiff")
    assert found.exif is not None
    assert len(found.exif) < tiff_writer.MAX_JPEG_BYTES
    assert 0xC612 not in loaded(found.exif)
    assert (found.xmp, found.iptc, found.icc) == (PACKET, IPTC, bytes(300))
    assert found.density == Density(600, 600, "inch")
    check_tags(loaded(found.exif), 6)
    check_tags(loaded(answer(found).exif), 1)
    if not big:
        assert found.exif.index(MAKER_NOTE) == data.index(MAKER_NOTE)
    # A copy in the other byte order has the same values.
    check_tags(loaded(tiff_writer.compact_exif(found.exif, "<>".replace(order, ""))), 6)


@functools.cache
def hostile_tiffs() -> dict[str, bytes]:
    def entry(tag: int, kind: int, count: int, content: int) -> bytes:
        return struct.pack("<HHII", tag, kind, count, content)

    def first(*entries: bytes, start: int = 8, behind: bytes = b"") -> bytes:
        return b"II*\0" + struct.pack("<IH", start, len(entries)) + b"".join(entries) + struct.pack("<I", 8) + behind

    large = bytes(50_000_000)
    every = [entry(tag, 1, 4 << 20, 8) for tag in range(0x8000, 0x8000 + 900)]
    return {
        "a directory that is its own next, EXIF, GPS and interoperability": first(
            *(entry(tag, 4, 1, 8) for tag in (0x8769, 0x8825, 0xA005))
        ),
        "counts of 2^32 - 1": first(*(entry(tag, kind, 2**32 - 1, 8) for tag, kind in ((0x10E, 2), (0x2BC, 12)))),
        "offsets of 2^32 - 1": first(entry(0x10E, 2, 9, 2**32 - 1), entry(0x8769, 4, 1, 2**32 - 1)),
        "65,535 entries": b"II*\0\x08\0\0\0\xff\xff" + entry(0x10E, 2, 9, 8) * 65_535,
        "a thousand large values": first(*every, entry(0x8769, 4, 1, 8), behind=large),
        "large values in the EXIF directory": first(entry(0x8769, 4, 1, 26), behind=first(*every)[8:] + large),
        "types that don't exist": first(*(entry(0x10E + kind, kind, 1, 8) for kind in range(14, 200))),
        "a BigTIFF of 2^64 - 1 entries": b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0" + b"\xff" * 100,
        "a BigTIFF that begins nowhere": b"MM\0+\0\x08\0\0" + b"\xff" * 100,
        "offset 0": b"II*\0" + bytes(1000),
        "nothing": b"",
        "only a header": b"II*\0\x08\0\0\0",
        "a short pointer": first(entry(0x8769, 3, 1, 8), entry(0x8825, 2, 1, 8), entry(0x10E, 2, 4, 0x41414141)),
    }


@pytest.mark.parametrize("name", list(hostile_tiffs()))
def test_hostile_tiffs(name: str) -> None:
    data = hostile_tiffs()[name]
    started = time.process_time()
    found = answer(transfer.read(data, "tiff"))
    assert time.process_time() - started < 2
    assert len(found.exif or b"") <= 4 << 20
    for target in ("jpeg", "tiff"):
        opened(written(noise(), target, found))
    other = transfer.write(encoded_image(noise(np.uint16)), "tiff", Metadata(exif=data[: 4 << 20]))
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(other, np.uint8), -1), noise(np.uint16))
    assert time.process_time() - started < 4


@ORDERS
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_that_is_cut_short(order: str, big: bool) -> None:
    data = scanner_tiff(order, big=big)
    for end in range(len(data)):
        found = transfer.read(data[:end], "tiff")
        assert found.xmp in (None, PACKET)
        assert answer(found).exif is not None

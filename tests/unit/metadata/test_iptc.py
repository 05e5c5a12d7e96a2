"""Tests of correcting IPTC-IIM and Photoshop's resources."""

import hashlib
import struct

import pytest

from service.formats import containers
from service.formats.geometry import Transform
from service.metadata import iptc, transfer
from tests.conftest import encoded
from tests.samples.metadata import IIM, PIXELS, SAME, TURNED, check_bounds, cost, resource


def dataset(record: int, number: int, value: bytes) -> bytes:
    return struct.pack(">BBBH", 0x1C, record, number, len(value)) + value


def test_what_iptc_says_of_gray() -> None:
    newsphoto = dataset(3, 20, b"\x0f\xa0") + dataset(3, 135, b"\x10")
    iim = dataset(2, 5, b"A title") + dataset(2, 130, b"1W") + IIM + newsphoto
    digest = resource(0x0425, hashlib.md5(iim, usedforsecurity=False).digest())
    changed = iptc.corrected(resource(0x0404, iim) + digest, SAME)
    # The digest is removed when the captions change.
    assert changed == resource(0x0404, dataset(2, 5, b"A title") + IIM)
    for other in (dataset(2, 130, b"3T"), dataset(2, 5, b"no gray")):
        whole = resource(0x0404, other + IIM) + digest
        assert iptc.corrected(whole, SAME) == whole


@pytest.mark.parametrize("end", range(12))
def test_iptc_that_is_cut_short_stays(end: int) -> None:
    whole = dataset(2, 130, b"3T") + dataset(2, 130, b"1W")
    cut = whole[: len(whole) - end]
    changed = iptc.corrected(resource(0x0404, cut), SAME)
    assert changed == resource(0x0404, cut if end else dataset(2, 130, b"3T"))


def test_photoshops_resources() -> None:
    true = [1028, 1034, 1035, 1054, 1061, 4000, 7000]
    places = [1005, 1025, 1064, 2000, 2998, 2999]
    stale = [1006, 1011, 1012, 1013, 1015, 1016, 1032, 1033, 1036, 1039, 1041, 1045, 1053, 1058, 1059, 1060, 1077]
    data = b"".join(resource(number, b"x") for number in sorted(true + places + stale))
    kept = iptc.without_stale(data)
    assert kept == b"".join(resource(number, b"x") for number in sorted(true + places))
    assert iptc.corrected(kept, SAME) == kept
    turned = iptc.corrected(kept, Transform(33, 47, orientation=6))
    assert turned == b"".join(resource(number, b"x") for number in true)


def test_iptc_of_very_many_records() -> None:
    many = struct.pack(">BBBH", 0x1C, 2, 25, 3) + b"one"
    data = resource(0x404, IIM + many * 60_000 + struct.pack(">BBBH", 0x1C, 2, 130, 2) + b"1W")
    few = resource(0x404, IIM + many * 600 + struct.pack(">BBBH", 0x1C, 2, 130, 2) + b"1W")
    assert cost(lambda: iptc.corrected(data, TURNED)) < 40 * cost(lambda: iptc.corrected(few, TURNED))
    corrected = iptc.corrected(data, TURNED)
    assert corrected is not None
    assert len(corrected) <= len(data)


def test_very_many_segments_and_resources() -> None:
    small = resource(0x404, b"") * 5000
    parts = [(0xED, b"Photoshop 3.0\0" + small)] * 900 + [(0xE1, b"Exif\0\0II*\0")] * 900
    data = containers.jpeg_with_segments(encoded(PIXELS, "JPEG"), parts)
    assert len(transfer.read(data, "jpeg").iptc or b"") <= 1000 * len(resource(0x404, b""))
    check_bounds(data, "jpeg")

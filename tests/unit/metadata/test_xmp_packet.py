"""Tests that no XMP packet takes much time or memory.

Time is that of this thread, compared with the time for a harmless packet of the same size. So a busy machine does not
fail the tests.
"""

import struct
import tracemalloc

import pytest

from service.formats import containers
from service.metadata import transfer, xmp
from tests.conftest import encoded
from tests.samples.metadata import MIB, PIXELS, TURNED, cost, outputs
from tests.samples.packets import URIS


def region_description(more: str, text: str = "") -> bytes:
    names = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in URIS.items())
    return f"<rdf:RDF {names}><rdf:Description {more}>{text}</rdf:Description></rdf:RDF>".encode()


def nested(name: str, depth: int, inside: str) -> str:
    return f'<{name} rdf:parseType="Resource">' * depth + inside + f"</{name}>" * depth


AREA = '<mwg-rs:Area stArea:x="0.1" stArea:y="0.1"/>'
POINT = "<Iptc4xmpExt:rbX>0.1</Iptc4xmpExt:rbX><Iptc4xmpExt:rbY>0.1</Iptc4xmpExt:rbY>"
HOSTILE = {
    "blanks in a tag": region_description(" " * 1_000_000),
    "blanks before each attribute": region_description(" ".join(f"q:a{n}{' ' * 1000}='1'" for n in range(900))),
    "blanks in a property": region_description("", f"<tiff:Orientation{' ' * 1_000_000}>6</tiff:Orientation>"),
    "a long value": region_description(f'tiff:Orientation="{"6" * 1_000_000}"'),
    "many attributes": region_description(" ".join(f"q:a{n}='1'" for n in range(70_000))),
    "brackets in values": region_description(f'q:a="{">" * 1_000_000}"'),
    "a text in many pieces": region_description(
        "", f"<exif:ColorSpace>{'x' * 500_000}{'<q:b/>x' * 19_000}</exif:ColorSpace>"
    ),
    "comments in a text": region_description(
        "", f"<exif:ColorSpace>{'x' * 500_000}{'<!---->x' * 60_000}</exif:ColorSpace>"
    ),
    "many properties": region_description("", "<exif:ColorSpace>1</exif:ColorSpace>" * 19_000),
    "many areas": region_description("", f"<mwg-rs:Regions>{AREA * 6_000}</mwg-rs:Regions>"),
    "deep areas": region_description("", nested("mwg-rs:Regions", 90, AREA * 6_000)),
    "deep boundaries": region_description(
        "",
        "<Iptc4xmpExt:ImageRegion>"
        + nested("Iptc4xmpExt:RegionBoundary", 90, "<Iptc4xmpExt:rbUnit>pixel</Iptc4xmpExt:rbUnit>" + POINT * 9_000)
        + "</Iptc4xmpExt:ImageRegion>",
    ),
    "many panoramas": region_description("", "<GPano:FullPanoWidthPixels>4</GPano:FullPanoWidthPixels>" * 18_000),
    "many descriptions": b"<r:RDF xmlns:r='%s'>" % xmp.RDF_URI.encode() + b"<r:Description/>" * 60_000 + b"</r:RDF>",
    "many names": region_description("", "".join(f'<q:p xmlns:n{n}="urn:{n}"/>' for n in range(30_000))),
    "parts without an end": region_description("", f"<mwg-rs:Regions>{AREA * 20_000}</mwg-rs:Regions>"),
    "a deep packet": region_description("", nested("q:a", 20_000, "")),
    "a deep property": region_description("", nested("mwg-rs:Regions", 15_000, "")),
    "a long name of the picture": region_description("rdf:about='" + '"' * 1_000_000 + "'"),
    "much padding": region_description("") + b" " * 1_000_000 + b'<?xpacket end="w"?>',
    "digits": region_description("", f"<mwg-rs:Regions>{AREA.replace('0.1', '1' * 400_000)}</mwg-rs:Regions>"),
}


@pytest.fixture(scope="module")
def harmless() -> float:
    """Return the time for a harmless packet of a megabyte, in seconds."""
    data = region_description("", "<q:property>1</q:property>" * 38_000)
    return cost(lambda: xmp.corrected(data, TURNED, "compact", "1"))


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_packet_costs_much_more_than_a_harmless_one(kind: str, harmless: float) -> None:
    data = HOSTILE[kind]
    assert cost(lambda: xmp.corrected(data, TURNED, "compact", "1")) < 25 * harmless
    changed = xmp.corrected(data, TURNED, "compact", "1")
    assert changed is None or len(changed) <= 2 * len(data) + 2000


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_packet_takes_much_memory(kind: str) -> None:
    tracemalloc.start()
    try:
        xmp.corrected(HOSTILE[kind], TURNED, "compact", "1")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * MIB


BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "lol"}">' for n in range(10))


@pytest.mark.parametrize(
    "doctype", [f"<!DOCTYPE x [{BOMB}]>", '<!DOCTYPE x [<!ENTITY a9 SYSTEM "file:///etc/hostname">]>', "<!DOCTYPE x>"]
)
def test_no_entity_is_expanded(doctype: str) -> None:
    data = doctype.encode() + region_description("", "<dc:title>&a9;</dc:title>")
    assert xmp.corrected(data, TURNED, "compact", "1") is None
    assert xmp.synthetic_note(data) is None


def test_an_entity_that_nobody_declares() -> None:
    assert xmp.corrected(region_description("", "<dc:title>&lol;</dc:title>"), TURNED, "compact", "1") is None


def test_the_parts_of_a_long_packet_are_not_put_together() -> None:
    part = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 40 * MIB, 0) + bytes(65_000)
    data = containers.jpeg_with_segments(encoded(PIXELS, "JPEG"), [(0xE1, part)] * 640)
    assert len(data) > 40_000_000
    tracemalloc.start()
    try:
        assert transfer.read(data, "jpeg").xmp is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB
    assert all(len(answer) < 10_000 for answer in outputs(data, "jpeg").values())

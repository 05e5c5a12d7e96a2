"""How much metadata an answer carries, and how long it takes to read those of a hostile file.

Time is that of this thread alone, and is compared with what a harmless file of the same size takes: so a busy machine
changes nothing.
"""

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from service.formats import containers, decoding_limits, heif_reader, tiff_writer
from service.formats.geometry import Transform
from service.formats.registry import Format
from service.imaging import decoding, encoding, identification
from service.imaging.photo import Pixels
from service.metadata import exif, iptc, transfer, xmp
from service.metadata.reader import EXTRA_BYTES
from service.metadata.transfer import Metadata
from tests.conftest import encoded
from tests.samples.packets import URIS, packet
from tests.unit.metadata.test_transfer import IIM, directory, resource

TURNED = Transform(33, 47, orientation=6, upright=(66, 94))
PIXELS = np.zeros((16, 16), np.uint8)
FORMATS: tuple[Format, ...] = ("jpeg", "png", "webp", "tiff")
MIB = 1 << 20


def cost(call: Callable[[], object]) -> float:
    """Seconds of this thread, the best of three."""
    times = []
    for _ in range(3):
        started = time.thread_time()
        call()
        times.append(time.thread_time() - started)
    return min(times)


def answers(data: bytes, source: str) -> dict[Format, bytes]:
    """Small answers with the metadata of an upload."""
    said = transfer.for_output(transfer.read(data, source), width=16, height=16, model="compact")  # type: ignore[arg-type]
    pixels = Pixels(np.zeros((16, 16, 3), np.uint8), None)
    return {format_: transfer.write(encoding.encode_pixels(pixels, format_, 90), format_, said) for format_ in FORMATS}


def check_bounds(data: bytes, source: str) -> None:
    for format_, answer in answers(data, source).items():
        assert len(answer) <= 3 * len(data) + 2 * EXTRA_BYTES, format_


def texts(kind: bytes, start: bytes, content: bytes, count: int = 1) -> list[tuple[bytes, bytes]]:
    return [(kind, start + zlib.compress(content, 9))] * count


def hexadecimal(name: str, block: bytes) -> tuple[bytes, bytes]:
    text = f"\n{name}\n{len(block)}\n{block.hex()}\n".encode()
    return b"zTXt", f"Raw profile type {name}".encode() + b"\0\0" + zlib.compress(text, 9)


LONG_PACKET = packet(f"<q:text>{'x' * 1_900_000}</q:text>")
LONG_BLOCK = b"II*\0\x08\0\0\0\0\0\0\0\0\0" + bytes(1_500_000)
PNGS = {
    "zTXt": texts(b"zTXt", b"Comment\0\0", b"x" * 4_100_000),
    "many zTXt": texts(b"zTXt", b"Comment\0\0", b"x" * 100_000, 40),
    "iTXt": texts(b"iTXt", b"Comment\0\1\0\0\0", b"x" * 4_100_000),
    "tEXt in languages": [(b"iTXt", b"Comment\0\0\0de\0" + b"x" * 100 + b"\0y")] * 60,
    "XMP": texts(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0", LONG_PACKET),
    "EXIF as text": [hexadecimal("exif", LONG_BLOCK)],
    "IPTC as text": [hexadecimal("iptc", resource(0x404, bytes(1_500_000)))],
    "XMP as text": [hexadecimal("xmp", LONG_PACKET)],
    "a profile": texts(b"iCCP", b"profile\0\0", bytes(4_000_000)),
    "damaged": [(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(4_000_000))[:-4] + b"oops")] * 20,
}


@pytest.mark.parametrize("kind", PNGS)
def test_a_small_png_does_not_become_a_large_answer(kind: str) -> None:
    data = containers.png_with_chunks(encoded(PIXELS, "PNG"), PNGS[kind])
    assert len(data) < 100_000
    check_bounds(data, "png")


def test_texts_that_belong_to_their_png_are_kept() -> None:
    plain = encoded(np.random.default_rng(0).integers(0, 256, (300, 400), np.uint8), "PNG")
    workflow = '{"node": "a scan of 1931"}' * 4000
    data = containers.png_with_chunks(plain, texts(b"zTXt", b"workflow\0\0", workflow.encode()))
    assert len(workflow) > 20 * (len(data) - len(plain))
    assert transfer.read(data, "png").comments[0].text == workflow


def overlapping(entries: int, size: int, first: tuple[int, ...] = tuple(range(0x10D, 0x140))) -> bytes:
    """A block whose three directories say the same bytes again and again."""

    def whole(at: int, tags: list[int], pointers: list[tuple[int, int]]) -> bytes:
        said = [(tag, 7, size, struct.pack("<I", 40_000)) for tag in tags]
        said += [(tag, 4, 1, struct.pack("<I", place)) for tag, place in pointers]
        body = b"".join(struct.pack("<HHI", tag, kind, count) + content for tag, kind, count, content in sorted(said))
        return (struct.pack("<H", len(said)) + body + bytes(4)).ljust(13_000, b"\0")

    others = list(range(0x9290, 0x9290 + entries))
    block = b"II*\0\x08\0\0\0" + whole(8, list(first), [(0x8769, 13_008), (0x8825, 26_008)])
    block += whole(13_008, others, []) + whole(26_008, others, [])
    return block.ljust(40_000, b"\0") + bytes(size)


@pytest.mark.parametrize("size", [25_000, 1_000_000, 4_000_000])
def test_values_that_lie_over_one_another_are_not_multiplied(size: int) -> None:
    block = overlapping(990, size)
    compact = tiff_writer.compact_exif(block)
    assert compact is None or len(compact) <= len(block) + 1000
    plain = cost(lambda: bytes(bytearray(block))) + cost(lambda: exif.corrected(overlapping(990, 10), TURNED))
    assert cost(lambda: exif.corrected(block, TURNED)) < 20 * plain
    check_bounds(containers.png_with_chunks(encoded(PIXELS, "PNG"), [(b"eXIf", block)]), "png")


def test_a_tiff_whose_values_lie_over_one_another() -> None:
    block = bytearray(overlapping(990, 25_000))
    picture = encoded(PIXELS, "TIFF")
    check_bounds(bytes(block), "tiff")
    check_bounds(picture + bytes(block), "tiff")
    tracemalloc.start()
    try:
        transfer.read(bytes(block), "tiff")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(block) + MIB


def excessive(count: int, size: int) -> bytes:
    """A block of so many entries, each of them with the same bytes."""
    place = 8 + 2 + 12 * count + 4
    body = b"".join(struct.pack("<HHII", 0xC000 + tag & 0xFFFF, 7, size, place) for tag in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + body + bytes(4) + bytes(size)


def with_exif(source: str, block: bytes) -> bytes:
    if source == "jpeg":
        # Without the density in a JFIF header, Pillow looks for one in EXIF; it joins the segments.
        plain = encoded(PIXELS, "JPEG")
        parts = [(0xE1, b"Exif\0\0" + block[at : at + 65_000]) for at in range(0, len(block), 65_000)]
        return containers.jpeg_with_segments(plain[:2] + plain[20:], parts)
    if source == "webp":
        return containers.webp_with_metadata(encoded(np.dstack([PIXELS] * 3), "WEBP"), block, None)
    chunk = (b"eXIf", block) if source == "png" else hexadecimal("exif", block)
    return containers.png_with_chunks(encoded(PIXELS, "PNG"), [chunk])


# Pillow's own guard may speak first. The service ignores such warnings.
@pytest.mark.filterwarnings(r"ignore:Tag data larger than file:UserWarning")
@pytest.mark.parametrize("source", ["jpeg", "png", "a text of a png", "webp"])
@pytest.mark.parametrize(("count", "size"), [(1000, 800_000), (40_000, 300_000)])
def test_no_library_takes_every_value_of_exif(source: str, count: int, size: int) -> None:
    block = excessive(count, size)
    assert exif.is_excessive(block)
    data = with_exif(source, block)
    tracemalloc.start()
    try:
        photo = decoding.decode(identification.identify(data, decoding_limits.Limits(10_000, 10_000)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert photo.size == (16, 16)
    assert peak < 10 * len(block)


def test_exif_of_a_camera_is_not_excessive() -> None:
    block = Image.Exif()
    block[0x112], block[0x10E] = 6, "x" * 50_000
    assert not exif.is_excessive(block.tobytes()[6:])
    assert not exif.is_excessive(excessive(1, 10))
    assert not exif.is_excessive(b"")
    # A count of entries that is damaged: a reader ends where the block does.
    assert not exif.is_excessive(b"II*\0\x08\0\0\0\xff\xff" + bytes(2000))


@pytest.mark.parametrize("count", [1001, 60_000])
def test_a_directory_of_too_many_entries(count: int) -> None:
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", count) + struct.pack("<HHII", 0x10E, 2, 4, 0) * count + bytes(4)
    assert exif.corrected(block, TURNED) is None
    assert transfer.for_output(Metadata(exif=block), width=1, height=1, model=None).exif is None


def test_directories_that_follow_themselves_and_one_another() -> None:
    first = directory("<", 8, [(0x10E, 2, 4, b"abc\0"), (0x8769, 4, 1, struct.pack("<I", 8))], following=8)
    changed = exif.corrected(b"II*\0\x08\0\0\0" + first, TURNED)
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert tags[0x10E] == "abc"


def test_a_maker_note_that_lies_over_its_own_directory() -> None:
    for place in (0, 4, 8, 20, 40):
        details = [(0x9003, 2, 4, b"193\0"), (0x927C, 7, 60, struct.pack("<I", place))]
        block = b"II*\0\x08\0\0\0" + directory("<", 8, [(0x8769, 4, 1, struct.pack("<I", 26))])
        body = b"".join(struct.pack("<HHI", tag, kind, count) + content for tag, kind, count, content in details)
        block += struct.pack("<H", 2) + body + bytes(40)
        changed = exif.corrected(block, TURNED)
        assert changed is None or len(changed) == len(block)
        said = tiff_writer.compact_exif(block)
        assert said is None or len(said) <= len(block) + 1000


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


def description(more: str, text: str = "") -> bytes:
    names = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in URIS.items())
    return f"<rdf:RDF {names}><rdf:Description {more}>{text}</rdf:Description></rdf:RDF>".encode()


def nested(name: str, depth: int, inside: str) -> str:
    return f'<{name} rdf:parseType="Resource">' * depth + inside + f"</{name}>" * depth


AREA = '<mwg-rs:Area stArea:x="0.1" stArea:y="0.1"/>'
POINT = "<Iptc4xmpExt:rbX>0.1</Iptc4xmpExt:rbX><Iptc4xmpExt:rbY>0.1</Iptc4xmpExt:rbY>"
HOSTILE = {
    "blanks in a tag": description(" " * 1_000_000),
    "blanks before each attribute": description(" ".join(f"q:a{n}{' ' * 1000}='1'" for n in range(900))),
    "blanks in a property": description("", f"<tiff:Orientation{' ' * 1_000_000}>6</tiff:Orientation>"),
    "a long value": description(f'tiff:Orientation="{"6" * 1_000_000}"'),
    "many attributes": description(" ".join(f"q:a{n}='1'" for n in range(70_000))),
    "brackets in values": description(f'q:a="{">" * 1_000_000}"'),
    "a text in many pieces": description("", f"<exif:ColorSpace>{'x' * 500_000}{'<q:b/>x' * 19_000}</exif:ColorSpace>"),
    "comments in a text": description("", f"<exif:ColorSpace>{'x' * 500_000}{'<!---->x' * 60_000}</exif:ColorSpace>"),
    "many properties": description("", "<exif:ColorSpace>1</exif:ColorSpace>" * 19_000),
    "many areas": description("", f"<mwg-rs:Regions>{AREA * 6_000}</mwg-rs:Regions>"),
    "deep areas": description("", nested("mwg-rs:Regions", 90, AREA * 6_000)),
    "deep boundaries": description(
        "",
        "<Iptc4xmpExt:ImageRegion>"
        + nested("Iptc4xmpExt:RegionBoundary", 90, "<Iptc4xmpExt:rbUnit>pixel</Iptc4xmpExt:rbUnit>" + POINT * 9_000)
        + "</Iptc4xmpExt:ImageRegion>",
    ),
    "many panoramas": description("", "<GPano:FullPanoWidthPixels>4</GPano:FullPanoWidthPixels>" * 18_000),
    "many descriptions": b"<r:RDF xmlns:r='%s'>" % xmp.RDF_URI.encode() + b"<r:Description/>" * 60_000 + b"</r:RDF>",
    "many names": description("", "".join(f'<q:p xmlns:n{n}="urn:{n}"/>' for n in range(30_000))),
    "parts without an end": description("", f"<mwg-rs:Regions>{AREA * 20_000}</mwg-rs:Regions>"),
    "a deep packet": description("", nested("q:a", 20_000, "")),
    "a deep property": description("", nested("mwg-rs:Regions", 15_000, "")),
    "a long name of the picture": description("rdf:about='" + '"' * 1_000_000 + "'"),
    "much padding": description("") + b" " * 1_000_000 + b'<?xpacket end="w"?>',
    "digits": description("", f"<mwg-rs:Regions>{AREA.replace('0.1', '1' * 400_000)}</mwg-rs:Regions>"),
}


@pytest.fixture(scope="module")
def harmless() -> float:
    """What a packet of a megabyte costs that nothing is wrong with."""
    data = description("", "<q:property>1</q:property>" * 38_000)
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
    data = doctype.encode() + description("", "<dc:title>&a9;</dc:title>")
    assert xmp.corrected(data, TURNED, "compact", "1") is None
    assert xmp.synthetic_note(data) is None


def test_an_entity_that_nobody_declares() -> None:
    assert xmp.corrected(description("", "<dc:title>&lol;</dc:title>"), TURNED, "compact", "1") is None


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
    assert all(len(answer) < 10_000 for answer in answers(data, "jpeg").values())


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


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
def test_an_answer_is_not_much_larger_than_its_upload(source: str) -> None:
    block = Image.Exif()
    block[0x10E] = "x" * 50_000
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert("RGB").save(buffer, source, exif=block)
    check_bounds(buffer.getvalue(), source.lower())

import io
import itertools
import struct
import time
import zlib
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from service.formats import containers, decoding_limits, tiff_writer
from service.formats.geometry import Transform
from service.formats.registry import Format
from service.imaging import decoding, encoding, identification
from service.imaging.photo import Pixels
from service.metadata import exif, reader, transfer, xmp
from service.metadata.transfer import Comment, Density, Metadata
from tests.conftest import encoded

FORMATS: tuple[Format, ...] = ("jpeg", "png", "webp")
ORDERS = pytest.mark.parametrize("order", ["<", ">"])
NAMESPACES = {
    "rdf": xmp.RDF_URI,
    "ext": xmp.IPTC_URI,
    "tiff": xmp.TIFF_URI,
    "exif": xmp.EXIF_URI,
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
}
IFD1 = ExifTags.IFD.IFD1
MAKER_NOTE = b"MAKER\0" + bytes(range(200))
THUMBNAIL = b"\xff\xd8\xff\xdbthumbnail\xff\xd9"
CAPTION = "My grandmother at the lake, 1931"
SCANNER = "VueScan 9"

PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="a person's tool">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <!-- a remark > with a bracket -->
  <rdf:Description rdf:about='uuid:1931 &amp; "more"'
    xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:note="http://ns.adobe.com/xmp/note/" xmlns:g="http://ns.adobe.com/xap/1.0/g/img/"
    tiff:Orientation="6" exif:ColorSpace = '65535' note:HasExtendedXMP="0123" xmp:CreatorTool="a > b">
   <exif:PixelXDimension>4000</exif:PixelXDimension>
   <xmp:Thumbnails><rdf:Alt><rdf:li rdf:parseType="Resource"><g:image>AAAA</g:image></rdf:li></rdf:Alt></xmp:Thumbnails>
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">Großmutter &lt;1931&gt;</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
{blanks}
<?xpacket end="w"?>""".replace("{blanks}", " " * 50).encode()


def directory(order: str, at: int, entries: list[tuple[int, int, int, bytes]], following: int = 0) -> bytes:
    """A TIFF directory at this offset, its long values behind it; entries: tag, type, count, value."""
    place = at + 2 + 12 * len(entries) + 4
    body, behind = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, value in entries:
        content = value.ljust(4, b"\0")
        if len(value) > 4:
            content = struct.pack(order + "I", place + len(behind))
            behind += value + bytes(len(value) % 2)
        body += struct.pack(order + "HHI", tag, kind, count) + content
    return body + struct.pack(order + "I", following) + behind


def tiff(order: str = "<", orientation: int = 6, software: str | None = SCANNER) -> bytes:
    """A block as cameras write it: two directories, a maker note, a thumbnail at the end."""

    def short(value: int) -> bytes:
        return struct.pack(order + "H", value)

    def long(value: int) -> bytes:
        return struct.pack(order + "I", value)

    caption = CAPTION.encode() + b"\0"
    first = [
        (0x100, 3, 1, short(4000)),
        (0x101, 4, 1, long(3000)),
        (0x10E, 2, len(caption), caption),
        (0x112, 3, 1, short(orientation)),
        (0x11A, 5, 1, long(600) + long(1)),
        (0x8769, 4, 1, bytes(4)),
    ]
    if software is not None:
        value = software.encode() + b"\0"
        first.insert(-1, (0x131, 2, len(value), value))
    details_at = 8 + len(directory(order, 8, first))
    first[-1] = (0x8769, 4, 1, long(details_at))
    details = directory(
        order,
        details_at,
        [
            (0x927C, 7, len(MAKER_NOTE), MAKER_NOTE),
            (0xA001, 3, 1, short(0xFFFF)),
            (0xA002, 4, 1, long(4000)),
            (0xA003, 3, 1, short(3000)),
        ],
    )
    second_at = details_at + len(details)
    second_size = len(directory(order, 0, [(0, 4, 1, b"")] * 3))
    second = [(0x112, 3, 1, short(orientation)), (0x201, 4, 1, long(second_at + second_size))]
    second.append((0x202, 4, 1, long(len(THUMBNAIL))))
    head = (b"II*\0" if order == "<" else b"MM\0*") + long(8)
    blocks = (directory(order, 8, first, second_at), details, directory(order, second_at, second), THUMBNAIL)
    return head + b"".join(blocks)


def tags_of(block: bytes, order: str) -> list[int]:
    """The tags of the first directory, as they stand."""
    (at,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, at)
    return [struct.unpack_from(order + "H", block, at + 2 + 12 * i)[0] for i in range(count)]


def resource(number: int, data: bytes, name: bytes = b"") -> bytes:
    padded = bytes([len(name)]) + name
    padded += bytes(len(padded) % 2)
    return struct.pack(">4sH", b"8BIM", number) + padded + struct.pack(">I", len(data)) + data + bytes(len(data) % 2)


IIM = b"\x1c\x02\x78" + struct.pack(">H", len(CAPTION)) + CAPTION.encode()
IPTC = resource(0x0404, IIM) + resource(0x0425, bytes(16), b"odd") + resource(1028 + 5000, b"odd")
FULL = Metadata(
    exif=tiff(),
    xmp=PACKET,
    iptc=IPTC,
    comments=(Comment("Comment", "Lake Müritz"),),
    density=Density(300, 300, "inch"),
)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8)


def picture(pixels: np.ndarray, format_: Format, *, with_alpha: bool = False) -> bytes:
    """As the service encodes an answer."""
    alpha = pixels[..., 0].copy() if with_alpha else None
    return encoding.encode_pixels(Pixels(pixels, alpha), format_, 92)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def packet_of(data: bytes) -> bytes:
    """XMP as Pillow finds it, without the instructions around it."""
    info = opened(data).info
    packet = info.get("xmp", info.get("XML:com.adobe.xmp"))
    assert packet is not None
    return packet.encode() if isinstance(packet, str) else packet


def tree(packet: bytes) -> ET.Element:
    return ET.fromstring(packet.decode().lstrip("\ufeff"))


def values(packet: bytes, name: str) -> list[str]:
    """A property of the picture, as an attribute or an element."""
    prefix, local = name.split(":")
    full = f"{{{NAMESPACES[prefix]}}}{local}"
    descriptions = tree(packet).findall("rdf:RDF/rdf:Description", NAMESPACES)
    attributes = [d.attrib[full] for d in descriptions if full in d.attrib]
    return attributes + [e.text or "" for d in descriptions for e in d.findall(full)]


def answer(found: Metadata, **changes: object) -> Metadata:
    facts = {"width": 47, "height": 33, "model": "compact", "version": "1"} | changes
    return transfer.for_output(found, **facts)  # type: ignore[arg-type]


def crcs_are_right(data: bytes) -> bool:
    position = 8
    while position < len(data):
        (size,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + size]
        if zlib.crc32(body) != struct.unpack_from(">I", data, position + 8 + size)[0]:
            return False
        position += 12 + size
    return position == len(data)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(FORMATS, FORMATS)))
def test_between_formats_what_can_be_carried_is(pixels: np.ndarray, source: Format, target: Format) -> None:
    upload = transfer.write(picture(pixels, source), source, FULL)
    data = transfer.write(picture(pixels, target), target, answer(transfer.read(upload, source)))
    image = opened(data)
    tags = image.getexif()
    assert tags[0x10E] == CAPTION
    assert tags[0x131] == SCANNER
    assert tags[0x112] == 1
    assert (tags[0x100], tags[0x101]) == (47, 33)
    assert tags[0x11A] == 600
    details = tags.get_ifd(ExifTags.IFD.Exif)
    assert (details[0xA001], details[0xA002], details[0xA003]) == (1, 47, 33)
    assert details[0x927C] == MAKER_NOTE
    assert not tags.get_ifd(IFD1)
    packet = packet_of(data)
    assert values(packet, "ext:DigitalSourceType") == [xmp.SYNTHETIC_COLORS]
    assert tree(packet).find(".//dc:description//rdf:li", NAMESPACES).text == "Großmutter <1931>"  # type: ignore[union-attr]
    if "webp" in (source, target):
        return
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    comment = image.info["comment"].decode() if target == "jpeg" else image.info["Comment"]
    assert comment == "Lake Müritz"
    assert transfer.read(data, target).iptc == IPTC
    if target == "jpeg":
        assert image.info["photoshop"][0x0404] == IIM


@pytest.mark.parametrize("format_", FORMATS)
def test_the_same_format_gives_back_the_same(pixels: np.ndarray, format_: Format) -> None:
    found = transfer.read(transfer.write(picture(pixels, format_), format_, FULL), format_)
    assert (found.exif, found.xmp, found.icc) == (FULL.exif, FULL.xmp, None)
    if format_ != "webp":
        assert (found.iptc, found.comments) == (FULL.iptc, FULL.comments)
        assert found.density == Density(*((300, 300, "inch") if format_ == "jpeg" else (11811, 11811, "metre")))
    again = transfer.write(picture(pixels, format_), format_, found)
    assert transfer.read(again, format_) == found


@pytest.mark.parametrize(
    ("format_", "with_alpha"), [("jpeg", False), ("png", False), ("png", True), ("webp", False), ("webp", True)]
)
def test_pixels_are_not_touched(pixels: np.ndarray, format_: Format, with_alpha: bool) -> None:
    plain = picture(pixels, format_, with_alpha=with_alpha)
    data = transfer.write(plain, format_, answer(FULL))
    before, after = opened(plain), opened(data)
    assert before.mode == after.mode
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    assert decoding.decode(identification.identify(data, decoding_limits.Limits(10_000, 10_000))).size == (33, 47)
    if format_ == "png":
        assert crcs_are_right(data)
    if format_ == "webp":
        assert int.from_bytes(data[4:8], "little") + 8 == len(data)
        assert data[20] == 0x0C | 0x10 * with_alpha


@pytest.mark.parametrize("with_alpha", [False, True])
def test_a_lossless_webp(pixels: np.ndarray, with_alpha: bool) -> None:
    channels = np.dstack([pixels, pixels[..., :1]]) if with_alpha else pixels
    plain = encoded(channels, "WEBP", lossless=True)
    data = transfer.write(plain, "webp", FULL)
    np.testing.assert_array_equal(np.asarray(opened(data)), np.asarray(opened(plain)))
    assert opened(data).info["exif"] == FULL.exif
    assert opened(data).mode == ("RGBA" if with_alpha else "RGB")


@pytest.mark.parametrize("format_", FORMATS)
def test_nothing_to_write_changes_nothing(pixels: np.ndarray, format_: Format) -> None:
    plain = picture(pixels, format_)
    assert transfer.read(plain, format_).exif is None
    assert transfer.write(plain, format_, Metadata()) == plain


@ORDERS
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_reset_and_nothing_else_moves(order: str, orientation: int) -> None:
    block = tiff(order, orientation)
    changed = exif.corrected(block, Transform(47, 33))
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert tags[0x112] == 1
    differing = sum(a != b for a, b in zip(block, changed, strict=False))
    assert differing <= 18
    assert block.index(MAKER_NOTE) == changed.index(MAKER_NOTE)


@pytest.mark.parametrize("format_", FORMATS)
def test_an_orientation_that_only_xmp_tells(pixels: np.ndarray, format_: Format) -> None:
    upload = transfer.write(picture(pixels, format_), format_, Metadata(xmp=PACKET))
    assert opened(upload).getexif()[0x112] == 6
    found = answer(transfer.read(upload, format_))
    assert opened(transfer.write(picture(pixels, format_), format_, found)).getexif().get(0x112, 1) == 1


@ORDERS
def test_the_thumbnail_is_gone_with_its_bytes(order: str) -> None:
    changed = exif.corrected(tiff(order), Transform(47, 33))
    assert changed is not None
    assert THUMBNAIL not in changed
    tags = Image.Exif()
    tags.load(changed)
    assert not tags.get_ifd(IFD1)


@ORDERS
def test_a_thumbnail_before_other_things_is_only_unlinked(order: str) -> None:
    # The maker note's place is moved behind the thumbnail.
    block = bytearray(tiff(order))
    place = block.index(struct.pack(order + "HHI", 0x927C, 7, len(MAKER_NOTE))) + 8
    struct.pack_into(order + "I", block, place, len(block))
    changed = exif.corrected(bytes(block) + MAKER_NOTE, Transform(47, 33))
    assert changed is not None
    assert changed.endswith(MAKER_NOTE)
    tags = Image.Exif()
    tags.load(changed)
    assert not tags.get_ifd(IFD1)
    assert tags.get_ifd(ExifTags.IFD.Exif)[0x927C] == MAKER_NOTE


@ORDERS
def test_a_size_that_outgrows_its_type(order: str) -> None:
    changed = exif.corrected(tiff(order), Transform(70_000, 80_000))
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert (tags[0x100], tags[0x101]) == (70_000, 80_000)


@ORDERS
@pytest.mark.parametrize("software", [None, "", "   "])
def test_software_is_named_where_nothing_is(order: str, software: str | None) -> None:
    block = answer(Metadata(exif=tiff(order, software=software))).exif
    assert block is not None
    tags = Image.Exif()
    tags.load(block)
    assert tags[0x131] == "tomau, synthetic colours by compact 1"
    assert tags_of(block, order) == [0x100, 0x101, 0x10E, 0x112, 0x11A, 0x131, 0x8769]
    assert (tags[0x10E], tags[0x112]) == (CAPTION, 1)
    assert tags.get_ifd(ExifTags.IFD.Exif)[0x927C] == MAKER_NOTE
    assert answer(Metadata(exif=block), model="other").exif == block


@pytest.mark.parametrize("format_", FORMATS)
def test_a_photo_that_said_nothing_says_that_its_colours_are_synthetic(pixels: np.ndarray, format_: Format) -> None:
    data = transfer.write(picture(pixels, format_), format_, answer(Metadata()))
    assert dict(opened(data).getexif()) == {0x131: "tomau, synthetic colours by compact 1"}
    packet = packet_of(data)
    assert values(packet, "ext:DigitalSourceType") == [xmp.SYNTHETIC_COLORS]
    assert values(packet, "ext:AISystemUsed") == ["tomau, model compact"]
    assert values(packet, "ext:AISystemVersionUsed") == ["1"]


def test_an_answer_that_was_not_coloured_has_no_note() -> None:
    kept = answer(FULL, model=None)
    assert b"synthetic" not in (kept.exif or b"")
    assert kept.xmp is not None
    assert values(kept.xmp, "ext:DigitalSourceType") == []
    assert values(kept.xmp, "tiff:Orientation") == ["1"]
    assert answer(Metadata(), model=None) == Metadata()


def test_a_packet_keeps_all_but_what_no_longer_holds() -> None:
    packet = answer(FULL).xmp
    assert packet is not None
    assert values(packet, "tiff:Orientation") == ["1"]
    assert values(packet, "exif:ColorSpace") == ["1"]
    assert values(packet, "exif:PixelXDimension") == ["47"]
    assert values(packet, "xmp:Thumbnails") == []
    assert values(packet, "xmp:CreatorTool") == ["a > b"]
    assert b"HasExtendedXMP" not in packet
    about = {d.attrib[f"{{{xmp.RDF_URI}}}about"] for d in tree(packet).findall("rdf:RDF/rdf:Description", NAMESPACES)}
    assert about == {'uuid:1931 & "more"'}
    # Everything else byte for byte.
    before, after = PACKET.splitlines(), packet.splitlines()
    assert len([line for line in before if line not in after]) == 4


def test_the_note_is_there_once_after_two_passes(pixels: np.ndarray) -> None:
    kept = FULL
    for model, format_ in (("first", "jpeg"), ("second", "png"), ("third", "webp"), ("fourth", "jpeg")):
        data = transfer.write(picture(pixels, format_), format_, answer(kept, model=model))  # type: ignore[arg-type]
        kept = transfer.read(data, format_)  # type: ignore[arg-type]
    assert kept.xmp is not None
    assert values(kept.xmp, "ext:DigitalSourceType") == [xmp.SYNTHETIC_COLORS]
    assert values(kept.xmp, "ext:AISystemUsed") == ["tomau, model fourth"]
    assert kept.exif == answer(FULL).exif


@pytest.mark.parametrize("is_attribute", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (xmp.SOURCE_TYPES + "negativeFilm", xmp.SYNTHETIC_COLORS),
        (xmp.SYNTHETIC_COLORS, xmp.SYNTHETIC_COLORS),
        (xmp.SYNTHETIC, xmp.SYNTHETIC),
    ],
)
def test_a_source_type_that_was_there(before: str, after: str, is_attribute: bool) -> None:
    note = f' q:DigitalSourceType="{before}"/>'
    if not is_attribute:
        note = f"><q:DigitalSourceType>{before}</q:DigitalSourceType></r:Description>"
    text = f'<r:RDF xmlns:r="{xmp.RDF_URI}"><r:Description xmlns:q="{xmp.IPTC_URI}"{note}</r:RDF>'
    packet = xmp.corrected(f'<x xmlns="adobe:ns:meta/">{text}</x>'.encode(), Transform(1, 1), "compact", "1")
    assert packet is not None
    assert values(packet, "ext:DigitalSourceType") == [after]


def test_properties_of_other_pictures_inside_a_packet_stay() -> None:
    inner = b'<q:Of xmlns:q="urn:q"><rdf:Description tiff:Orientation="8"/></q:Of>'
    packet = xmp.corrected(
        PACKET.replace(b"<dc:description>", inner + b"<dc:description>"), Transform(1, 1), "compact", "1"
    )
    assert packet is not None
    assert inner in packet


@pytest.mark.parametrize(
    "packet",
    [
        b"not XML",
        b"<x",
        PACKET[:700],
        PACKET.replace(b"</dc:description>", b""),
        PACKET.decode().encode("utf-16"),
        b'<!DOCTYPE x [<!ENTITY a "aaaa">]>' + PACKET[PACKET.index(b"<x:") :],
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><x>&a;</x>',
        b"<x/>",
        f'<rdf:RDF xmlns:rdf="{xmp.RDF_URI}"/>'.encode(),
        b"<a>" * 500_000,
        f'<r:RDF xmlns:r="{xmp.RDF_URI}">'.encode() + b"<a/>" * 200_000 + b"</r:RDF>",
    ],
    ids=range(11),
)
def test_a_packet_that_can_not_be_read_gives_way_to_a_fresh_one(packet: bytes) -> None:
    started = time.thread_time()
    assert answer(Metadata(xmp=packet)).xmp == xmp.new_packet("compact", "1")
    assert answer(Metadata(xmp=packet), model=None).xmp is None
    assert time.thread_time() - started < 2


def test_names_that_need_escaping() -> None:
    packet = xmp.new_packet('<a & "b">\x00\ud800', "]]>")
    assert values(packet, "ext:AISystemUsed") == ['tomau, model <a & "b">']
    assert values(packet, "ext:AISystemVersionUsed") == ["]]>"]


def test_strip_leaves_the_density(pixels: np.ndarray) -> None:
    stripped = transfer.strip(FULL)
    assert stripped == Metadata(density=FULL.density)
    data = transfer.write(picture(pixels, "jpeg"), "jpeg", answer(stripped))
    for secret in (CAPTION.encode(), SCANNER.encode(), MAKER_NOTE, b"1931", "Müritz".encode()):
        assert secret not in data
    assert values(packet_of(data), "ext:DigitalSourceType") == [xmp.SYNTHETIC_COLORS]


PACKETS = {
    "synthetic colours": (xmp.new_packet("compact", "5"), [xmp.SYNTHETIC_COLORS, "tomau, model compact", "5"]),
    "synthetic": (
        xmp.new_packet("a", "1").replace(xmp.SYNTHETIC_COLORS.encode(), xmp.SYNTHETIC.encode()),
        [xmp.SYNTHETIC],
    ),
    "a photograph": (xmp.new_packet("a", "1").replace(xmp.SYNTHETIC_COLORS.encode(), b"digitalCapture"), []),
    "damaged": (xmp.new_packet("a", "1")[:-30], []),
    "nothing": (b"", []),
}


@pytest.mark.parametrize(("packet", "said"), PACKETS.values(), ids=PACKETS)
def test_strip_leaves_that_a_picture_is_synthetic(pixels: np.ndarray, packet: bytes, said: list[str]) -> None:
    private = packet.replace(b"<rdf:Description", b'<rdf:Description xmlns:x="urn:x" x:Owner="Anna"', 1)
    stripped = transfer.strip(Metadata(xmp=private or None))
    data = transfer.write(picture(pixels, "jpeg"), "jpeg", answer(stripped, model=None))
    assert b"Anna" not in data
    found = [values(packet_of(data), f"ext:{name}") for _, name in xmp.NOTE] if stripped.xmp else []
    assert [value for values_ in found for value in values_][: len(said)] == said
    assert bool(stripped.xmp) == bool(said)


@ORDERS
@pytest.mark.parametrize("damage", ["header", "offset", "count", "cut"])
def test_a_damaged_block_is_left_out(order: str, damage: str) -> None:
    block = tiff(order)
    damaged = {
        "header": b"XX" + block[2:],
        "offset": block[:4] + b"\xff\xff\xff\xff" + block[8:],
        "count": block[:8] + b"\xff\xff" + block[10:],
        "cut": block[:40],
    }[damage]
    assert exif.corrected(damaged, Transform(1, 1)) is None
    assert answer(Metadata(exif=damaged)).exif == answer(Metadata()).exif


@ORDERS
def test_damage_below_the_first_directory_takes_nothing_from_it(order: str) -> None:
    block = tiff(order)
    place = block.index(struct.pack(order + "HHI", 0x8769, 4, 1)) + 8
    changed = exif.corrected(block[:place] + b"\xff\xff\xff\x7f" + block[place + 4 :], Transform(1, 1))
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert (tags[0x112], tags[0x10E]) == (1, CAPTION)


def test_an_orientation_of_another_type() -> None:
    entry = struct.pack("<HHIf", 0x112, 11, 1, 6.0)
    changed = exif.corrected(b"II*\0\x08\0\0\0\x01\0" + entry + bytes(4), Transform(1, 1))
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert tags[0x112] == 1


def test_what_does_not_fit_into_a_jpeg(pixels: np.ndarray) -> None:
    plain = picture(pixels, "jpeg")
    large = Metadata(
        exif=tiff() + bytes(66_000), comments=(Comment("Comment", "x" * 70_000), Comment("Title", "a lake"))
    )
    found = transfer.read(transfer.write(plain, "jpeg", large), "jpeg")
    assert found.exif is not None
    tags = Image.Exif()
    tags.load(found.exif)
    assert (tags[0x10E], tags.get_ifd(ExifTags.IFD.Exif)[0x927C]) == (CAPTION, MAKER_NOTE)
    assert found.exif.index(MAKER_NOTE) == tiff().index(MAKER_NOTE)
    assert found.comments == (Comment("Comment", "Title: a lake"),)
    padded = PACKET.replace(b"\n<?xpacket end", b" " * 70_000 + b"\n<?xpacket end")
    found = transfer.read(transfer.write(plain, "jpeg", answer(Metadata(xmp=padded))), "jpeg")
    assert found.xmp is not None
    assert values(found.xmp, "xmp:CreatorTool") == ["a > b"]
    full = PACKET.replace("Großmutter".encode(), b"x" * 70_000)
    found = transfer.read(transfer.write(plain, "jpeg", answer(Metadata(xmp=full))), "jpeg")
    assert found.xmp == xmp.new_packet("compact", "1")
    png = transfer.write(picture(pixels, "png"), "png", answer(Metadata(xmp=full, exif=large.exif)))
    assert b"x" * 70_000 in packet_of(png)
    assert opened(png).getexif()[0x112] == 1


def test_a_block_near_the_limit_is_not_pushed_over_it() -> None:
    block = tiff(software=None).replace(THUMBNAIL, THUMBNAIL)
    near = block + bytes(tiff_writer.MAX_JPEG_BYTES - len(block))
    assert exif.with_software(near, "tomau") == near


def test_resources_over_several_segments(pixels: np.ndarray) -> None:
    resources = resource(0x0404, IIM * 5000) + resource(1060, b"old") + resource(1036, b"thumbnail")
    data = transfer.write(picture(pixels, "jpeg"), "jpeg", Metadata(iptc=resources))
    assert opened(data).size == (47, 33)
    assert transfer.read(data, "jpeg").iptc == resource(0x0404, IIM * 5000)


@pytest.mark.parametrize("end", range(1, len(IPTC)))
def test_resources_that_are_cut_short(pixels: np.ndarray, end: int) -> None:
    whole = resource(0x0404, IIM)
    found = transfer.read(
        containers.jpeg_with_segments(b"\xff\xd8\xff\xd9", [(0xED, b"Photoshop 3.0\0" + IPTC[:end])]), "jpeg"
    )
    assert (found.iptc or b"").startswith(whole if end >= len(whole) else b"")


def test_iptc_as_other_programs_write_it_into_a_png(pixels: np.ndarray) -> None:
    def text(name: str, block: bytes) -> tuple[bytes, bytes]:
        lines = "\n".join(block.hex()[i : i + 72] for i in range(0, 2 * len(block), 72))
        packed = zlib.compress(f"\n{name}\n{len(block):8}\n{lines}\n".encode())
        return b"zTXt", f"Raw profile type {name}".encode() + b"\0\0" + packed

    plain = picture(pixels, "png")
    both = containers.png_with_chunks(
        plain, [text("iptc", IIM), text("exif", b"Exif\0\0" + tiff()), text("xmp", PACKET)]
    )
    found = transfer.read(both, "png")
    assert found.iptc == resource(0x0404, IIM)
    assert (found.exif, found.xmp, found.comments) == (tiff(), PACKET, ())


@pytest.mark.parametrize(
    ("density", "format_", "expected"),
    [
        (Density(118, 118, "centimetre"), "png", (299.72, 299.72)),
        (Density(11811, 5906, "metre"), "jpeg", (300, 150)),
        (Density(300, 300, "inch"), "jpeg", (300, 300)),
        (Density(10**7, 10**7, "metre"), "jpeg", None),
        (Density(1, 1, "metre"), "jpeg", None),
    ],
)
def test_density(pixels: np.ndarray, density: Density, format_: Format, expected: tuple[float, float] | None) -> None:
    image = opened(transfer.write(picture(pixels, format_), format_, Metadata(density=density)))
    assert image.info.get("dpi") == (None if expected is None else pytest.approx(expected, abs=0.01))


def test_the_shape_of_pixels(pixels: np.ndarray) -> None:
    data = transfer.write(picture(pixels, "jpeg"), "jpeg", Metadata(density=Density(2, 1, "shape")))
    assert opened(data).info["jfif_density"] == (2, 1)
    png = transfer.write(picture(pixels, "png"), "png", transfer.read(data, "jpeg"))
    assert opened(png).info["aspect"] == (2, 1)


def test_comments_of_a_png(pixels: np.ndarray) -> None:
    comments = (
        Comment("Title", "Müritz"),
        Comment("Author", "Łucja"),
        Comment("Title", "See", "de", "Titel"),
    )
    data = transfer.write(picture(pixels, "png"), "png", Metadata(comments=comments))
    image = opened(data)
    assert image.text["Author"] == "Łucja"  # type: ignore[attr-defined]
    assert image.text["Title"].lang == "de"  # type: ignore[attr-defined]
    assert transfer.read(data, "png").comments == comments


def test_a_comment_in_an_unknown_encoding(pixels: np.ndarray) -> None:
    raw = "Müritz".encode("latin-1")
    found = transfer.read(
        containers.jpeg_with_segments(picture(pixels, "jpeg"), [(0xFE, raw), (0xFE, b"a\0b\0")]), "jpeg"
    )
    assert opened(transfer.write(picture(pixels, "png"), "png", found)).info["Comment"] == "a b"
    assert transfer.read(transfer.write(picture(pixels, "png"), "png", found), "png").comments[0].text == "Müritz"
    assert raw in transfer.write(picture(pixels, "jpeg"), "jpeg", found)


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("size", [500, 150_000])
def test_a_profile_is_read_and_never_written(pixels: np.ndarray, format_: Format, size: int) -> None:
    profile = np.random.default_rng(1).bytes(size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, icc_profile=profile)
    found = transfer.read(buffer.getvalue(), format_)
    assert found.icc == profile
    for target in FORMATS:
        assert "icc_profile" not in opened(transfer.write(picture(pixels, target), target, answer(found))).info
        assert "icc_profile" not in opened(transfer.write(picture(pixels, target), target, found)).info


def test_other_segments_are_not_carried(pixels: np.ndarray) -> None:
    others = [(0xE2, b"MPF\0MM\0*"), (0xEB, b"JP\0\1jumb"), (0xE1, b"http://ns.adobe.com/xmp/extension/\0more")]
    others += [(0xED, b"Exif\0\0" + tiff()), (0xEC, b"Ducky"), (0xE0, b"JFXX\0\x10thumbnail")]
    assert transfer.read(containers.jpeg_with_segments(picture(pixels, "jpeg"), others), "jpeg") == Metadata()
    claim = containers.png_with_chunks(picture(pixels, "png"), [(b"caBX", b"jumb")])
    assert transfer.read(claim, "png") == Metadata()


def chunk_of_zeros(kind: bytes, before: bytes, size: int) -> tuple[bytes, bytes]:
    return kind, before + zlib.compress(bytes(size), 9)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk_of_zeros(b"zTXt", b"Comment\0\0", 20_000_000)] * 50,
        [chunk_of_zeros(b"iCCP", b"profile\0\0", 20_000_000)],
        [chunk_of_zeros(b"iTXt", b"Comment\0\1\0\0\0", 20_000_000)] * 50,
        [(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(4_000_000))[:-4] + b"oops")] * 500,
        [(b"tEXt", b"Comment\0" + b"x" * 1000)] * 20_000,
        [(b"tEXt", b"\0"), (b"tEXt", b""), (b"zTXt", b"a"), (b"iTXt", b"a\0"), (b"iTXt", b"a\0\1\0b")],
        [(b"pHYs", bytes(9)), (b"iCCP", b""), (b"eXIf", b"")],
        [(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 4\nnot hexadecimal\n"))],
        [(b"prVt", b"")] * 300_000,
    ],
    ids=range(9),
)
def test_hostile_chunks(pixels: np.ndarray, chunks: list[tuple[bytes, bytes]]) -> None:
    data = containers.png_with_chunks(picture(pixels, "png"), chunks)
    started = time.thread_time()
    found = answer(transfer.read(data, "png"))
    assert time.thread_time() - started < 2
    assert len(found.comments) <= 1000
    assert found.xmp == xmp.new_packet("compact", "1")


@pytest.mark.parametrize(
    "parts",
    [
        [(0xFE, b"x" * 60_000)] * 800,
        [(0xFE, b"")] * 5000,
        [(0xE1, b"Exif\0\0" + tiff())] * 500,
        [(0xED, b"Photoshop 3.0\0" + resource(0x0404, b"") * 4000)] * 200,
        [(0xE2, b"ICC_PROFILE\0\1\2half")],
        [(0xE2, b"ICC_PROFILE\0" + bytes(2) + b"none")],
        [(0xE0, b"JFIF\0\1\1\7\0\1\0\1")],
    ],
    ids=range(7),
)
def test_hostile_segments(pixels: np.ndarray, parts: list[tuple[int, bytes]]) -> None:
    data = containers.jpeg_with_segments(picture(pixels, "jpeg"), parts)
    started = time.thread_time()
    found = transfer.read(data, "jpeg")
    assert time.thread_time() - started < 2
    assert found.icc is None
    assert sum(len(comment.text) for comment in found.comments) <= reader.MAX_BLOCK


@pytest.mark.parametrize("part", [b"XMP \0\0\0\0", b"EXIF\xff\xff\xff\xff", b"EXIF\2\0\0\0ab", b"ICCP"])
def test_hostile_webp_chunks(pixels: np.ndarray, part: bytes) -> None:
    started = time.thread_time()
    assert transfer.read(picture(pixels, "webp") + part * 1_000_000, "webp").xmp is None
    assert time.thread_time() - started < 2


def test_a_chunk_with_a_wrong_sum_is_left_out(pixels: np.ndarray) -> None:
    data = bytearray(transfer.write(picture(pixels, "png"), "png", FULL))
    data[data.index(b"eXIf") + 30] ^= 1
    found = transfer.read(bytes(data), "png")
    assert found.exif is None
    assert found.xmp == PACKET


PLAIN = {
    format_: encoding.encode_pixels(Pixels(np.full((8, 9, 3), 99, np.uint8), None), format_, 90) for format_ in FORMATS
}
SEEDS = {format_: transfer.write(plain, format_, FULL) for format_, plain in PLAIN.items()}


# Pillow's, of values that lie outside a damaged block: they are kept as they came.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=8), st.integers(0, 8)), max_size=8))
def test_no_mutation_makes_it_raise(format_: Format, changes: list[tuple[int, bytes, int]]) -> None:
    data = SEEDS[format_]
    for place, new, removed in changes:
        start = place % (len(data) + 1)
        data = data[:start] + new + data[start + removed :]
    found = transfer.read(data, format_)
    for target in FORMATS:
        written = transfer.write(PLAIN[target], target, answer(found))
        Image.open(io.BytesIO(written)).load()


@settings(max_examples=300, deadline=None)
@given(
    order=st.sampled_from("<>"),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=12),
    end=st.integers(0, 1000),
)
def test_no_block_makes_it_raise(order: str, changes: list[tuple[int, int]], end: int) -> None:
    block = bytearray(tiff(order, software=None))
    for place, value in changes:
        block[place % len(block)] = value
    found = answer(Metadata(exif=bytes(block[: max(1, len(block) - end)]), xmp=None))
    assert found.exif is not None
    again = answer(found)
    assert again.exif is not None


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=4), st.integers(0, 4)), max_size=3))
def test_a_packet_is_well_formed_whatever_came(changes: list[tuple[int, bytes, int]]) -> None:
    packet = PACKET
    for place, new, removed in changes:
        start = place % (len(packet) + 1)
        packet = packet[:start] + new + packet[start + removed :]
    found = answer(Metadata(xmp=packet)).xmp
    assert found is not None
    assert xmp.SYNTHETIC_COLORS.encode() in found
    ET.fromstring(found)


def uneven(order: str, orientation: int) -> bytes:
    """A block with 200 x 100 pixels an inch, and 3,000 x 1,500 a centimetre of sensor."""

    def rational(value: int) -> bytes:
        return struct.pack(order + "II", value, 1)

    first = [(0x112, 3, 1, struct.pack(order + "H", orientation)), (0x11A, 5, 1, rational(200))]
    first += [(0x11B, 5, 1, rational(100)), (0x128, 3, 1, struct.pack(order + "H", 2)), (0x8769, 4, 1, bytes(4))]
    details_at = 8 + len(directory(order, 8, first))
    first[-1] = (0x8769, 4, 1, struct.pack(order + "I", details_at))
    details = directory(order, details_at, [(0xA20E, 5, 1, rational(3000)), (0xA20F, 5, 1, rational(1500))])
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + directory(order, 8, first) + details


@ORDERS
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", [*FORMATS, "tiff"])
@pytest.mark.parametrize("is_stripped", [False, True])
def test_the_density_is_turned_with_the_photo(
    pixels: np.ndarray, order: str, orientation: int, format_: Format, is_stripped: bool
) -> None:
    said = Metadata(exif=uneven(order, orientation), density=None if format_ == "tiff" else Density(200, 100, "inch"))
    found = transfer.read(transfer.write(picture(pixels, format_), format_, said), format_)
    data = transfer.write(
        picture(pixels, format_), format_, answer(transfer.strip(found) if is_stripped else found, model=None)
    )
    expected = (100, 200) if orientation >= 5 else (200, 100)
    image = opened(data)
    if format_ != "webp":
        assert image.info["dpi"] == pytest.approx(expected, abs=0.02)
    if not is_stripped:
        tags = image.getexif()
        assert (tags[0x11A], tags[0x11B]) == expected
        details = tags.get_ifd(ExifTags.IFD.Exif)
        assert (details[0xA20E], details[0xA20F]) == tuple(15 * side for side in expected)

"""Metadata blocks, files that hold them, and readers for both, shared by the tests of formats and metadata."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from service.formats.geometry import Transform
from service.formats.registry import Format
from service.imaging import encoding
from service.imaging.photo import Pixels
from service.metadata import transfer, xmp
from service.metadata.reader import EXTRA_BYTES
from service.metadata.transfer import Comment, Density, Metadata
from tests.samples.packets import packet

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
    """Return a TIFF directory at an offset, followed by its long values. entries: tag, type, count, value."""
    place = at + 2 + 12 * len(entries) + 4
    body, behind = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, value in entries:
        content = value.ljust(4, b"\0")
        if len(value) > 4:
            content = struct.pack(order + "I", place + len(behind))
            behind += value + bytes(len(value) % 2)
        body += struct.pack(order + "HHI", tag, kind, count) + content
    return body + struct.pack(order + "I", following) + behind


def exif_block(order: str = "<", orientation: int = 6, software: str | None = SCANNER) -> bytes:
    """Return a block as cameras write it: two directories, a maker note, a thumbnail at the end."""

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


def resource(number: int, data: bytes, name: bytes = b"") -> bytes:
    padded = bytes([len(name)]) + name
    padded += bytes(len(padded) % 2)
    return struct.pack(">4sH", b"8BIM", number) + padded + struct.pack(">I", len(data)) + data + bytes(len(data) % 2)


IIM = b"\x1c\x02\x78" + struct.pack(">H", len(CAPTION)) + CAPTION.encode()
IPTC = resource(0x0404, IIM) + resource(0x0425, bytes(16), b"odd") + resource(1028 + 5000, b"odd")
FULL = Metadata(
    exif=exif_block(),
    xmp=PACKET,
    iptc=IPTC,
    comments=(Comment("Comment", "Lake Müritz"),),
    density=Density(300, 300, "inch"),
)


def image_of(pixels: np.ndarray, format_: Format, *, with_alpha: bool = False) -> bytes:
    """Return the image as the service encodes an output."""
    alpha = pixels[..., 0].copy() if with_alpha else None
    return encoding.encode_pixels(Pixels(pixels, alpha), format_, 92)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def packet_of(data: bytes) -> bytes:
    """Return the XMP packet as Pillow finds it."""
    info = opened(data).info
    packet = info.get("xmp", info.get("XML:com.adobe.xmp"))
    assert packet is not None
    return packet.encode() if isinstance(packet, str) else packet


def tree(packet: bytes) -> ET.Element:
    return ET.fromstring(packet.decode().lstrip("\ufeff"))


def values(packet: bytes, name: str) -> list[str]:
    """Return the values of a property, from attributes and elements."""
    prefix, local = name.split(":")
    full = f"{{{NAMESPACES[prefix]}}}{local}"
    descriptions = tree(packet).findall("rdf:RDF/rdf:Description", NAMESPACES)
    attributes = [d.attrib[full] for d in descriptions if full in d.attrib]
    return attributes + [e.text or "" for d in descriptions for e in d.findall(full)]


def answer(found: Metadata, **changes: object) -> Metadata:
    facts = {"width": 47, "height": 33, "model": "compact", "version": "1"} | changes
    return transfer.for_output(found, **facts)  # type: ignore[arg-type]


Entries = dict[int, tuple[int, int, bytes]]
XP_TITLE = "Müritz".encode("utf-16-le") + b"\0\0"


def noise(dtype: type = np.uint8, channels: int = 3, size: tuple[int, int] = (33, 47)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*size, channels), dtype)


def encoded_image(array: np.ndarray, format_: Format = "tiff") -> bytes:
    """Return the image as the service encodes an output, before metadata is written."""
    if format_ == "avif":
        return encoded_avif(array, Metadata())
    parameters = [cv2.IMWRITE_TIFF_COMPRESSION, 5] if format_ == "tiff" else []
    done, data = cv2.imencode(f".{format_}", array, parameters)
    assert done
    return data.tobytes()


def encoded_avif(array: np.ndarray, said: Metadata) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "AVIF", **transfer.avif_options(said))
    return buffer.getvalue()


def written(array: np.ndarray, format_: Format, said: Metadata) -> bytes:
    if format_ == "avif":
        return transfer.write(encoded_avif(array, said), "avif", said)
    return transfer.write(encoded_image(array, format_), format_, said)


def decoded(data: bytes, dtype: type = np.uint8) -> np.ndarray:
    """Return the pixels of an upright TIFF, BGR. OpenCV premultiplies 8-bit pixels; Pillow does not support 16 bits."""
    if dtype is np.uint16:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    array = np.asarray(opened(data))
    return array[..., [2, 1, 0, 3][: array.shape[-1]]]


def loaded(block: bytes | None) -> Image.Exif:
    assert block is not None
    tags = Image.Exif()
    tags.load(block)
    return tags


def page_of(data: bytes) -> tifffile.TiffPage:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages) == 1
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        return page


def scanner_tiff(order: str = "<", *, big: bool = False, changes: Entries | None = None) -> bytes:
    """Return a gray TIFF of four pixels as a scanner or camera writes it: one strip, then metadata."""
    word = "Q" if big else "I"
    size = 8 if big else 4
    data = bytearray({"<": b"II", ">": b"MM"}[order] + struct.pack(order + "H", 43 if big else 42))
    data += struct.pack(order + "HHQ", 8, 0, 0) if big else bytes(4)
    strip = len(data)
    data += bytes([1, 2, 3, 4])

    def directory(entries: Entries) -> int:
        packed = b""
        for tag, (kind, count, value) in sorted(entries.items()):
            content = value.ljust(size, b"\0")
            if len(value) > size:
                content = struct.pack(order + word, len(data))
                data.extend(value + bytes(len(value) % 2))
            packed += struct.pack(order + "HH" + word, tag, kind, count) + content
        start = len(data)
        data.extend(struct.pack(order + ("Q" if big else "H"), len(entries)) + packed + bytes(size))
        return start

    def number(kind: str, *numbers: int) -> bytes:
        return struct.pack(order + kind * len(numbers), *numbers)

    def pointer(entries: Entries) -> tuple[int, int, bytes]:
        return (18 if big else 4), 1, number(word, directory(entries))

    def text(letters: str) -> tuple[int, int, bytes]:
        return 2, len(letters.encode()) + 1, letters.encode() + b"\0"

    interoperability = pointer({1: text("R98"), 2: (7, 4, b"0100")})
    details = pointer(
        {
            0x829A: (5, 1, number("I", 1, 125)),
            0x9003: text("1931:07:01 12:00:00"),
            0x9204: (10, 1, number("i", -1, 3)),
            0x927C: (7, len(MAKER_NOTE), MAKER_NOTE),
            0xA001: (3, 1, number("H", 0xFFFF)),
            0xA002: (4, 1, number("I", 2)),
            0xA005: interoperability,
        }
    )
    place = pointer({1: text("N"), 2: (5, 3, number("I", 53, 1, 25, 1, 1234, 100))})
    first: Entries = {
        0x100: (3, 1, number("H", 2)),
        0x101: (3, 1, number("H", 2)),
        0x102: (3, 1, number("H", 8)),
        0x103: (3, 1, number("H", 1)),
        0x106: (3, 1, number("H", 1)),
        0x10D: text("Album 3"),
        0x10E: text(CAPTION),
        0x111: (4, 1, number("I", strip)),
        0x112: (3, 1, number("H", 6)),
        0x115: (3, 1, number("H", 1)),
        0x116: (4, 1, number("I", 2)),
        0x117: (4, 1, number("I", 4)),
        0x11A: (5, 1, number("I", 600, 1)),
        0x11B: (5, 1, number("I", 600, 1)),
        0x128: (3, 1, number("H", 2)),
        0x131: text(SCANNER),
        0x2BC: (1, len(PACKET), PACKET),
        0x8649: (1, len(IPTC), IPTC),
        0x8769: details,
        0x8773: (7, 300, bytes(300)),
        0x8825: place,
        0x9C9B: (1, len(XP_TITLE), XP_TITLE),
        0xC612: (1, 4, b"\1\4\0\0"),
    }
    first |= changes or {}
    struct.pack_into(order + word, data, size, directory({tag: field for tag, field in first.items() if field[1]}))
    return bytes(data)


def check_tags(tags: Image.Exif, orientation: int) -> None:
    assert (tags[0x10E], tags[0x131], tags[0x10D]) == (CAPTION, SCANNER, "Album 3")
    assert (tags[0x112], tags[0x11A], tags[0x128]) == (orientation, 600, 2)
    assert bytes(tags[0x9C9B]).rstrip(b"\0") == XP_TITLE.rstrip(b"\0")
    details = tags.get_ifd(ExifTags.IFD.Exif)
    assert (details[0x829A], details[0x9003], details[0x9204]) == (1 / 125, "1931:07:01 12:00:00", -1 / 3)
    assert details[0x927C] == MAKER_NOTE
    assert tags.get_ifd(ExifTags.IFD.GPSInfo) == {1: "N", 2: (53, 25, 12.34)}
    assert tags.get_ifd(ExifTags.IFD.Interop)[1] == "R98"


SAME = Transform(47, 33)
PROFILE = b"a profile that says how gray a gray is" * 20
MOTION = 'GCamera:MotionPhoto="1" GCamera:MotionPhotoVersion="1" GCamera:MotionPhotoPresentationTimestampUs="0" '


def ascii_value(block: bytes, tag: int) -> bytes:
    """Return the bytes of a value in a block."""
    (at,) = struct.unpack_from("<I", block, 4)
    (count,) = struct.unpack_from("<H", block, at)
    entries = (struct.unpack_from("<HHII", block, at + 2 + 12 * number) for number in range(count))
    size, place = next((size, place) for found, _, size, place in entries if found == tag)
    return block[place : place + size]


LIES = packet(
    "<tiff:BitsPerSample><rdf:Seq><rdf:li>16</rdf:li></rdf:Seq></tiff:BitsPerSample>",
    attributes=MOTION + 'photoshop:ColorMode="1" dc:format="image/png" photoshop:LegacyIPTCDigest="0" xmp:Rating="5"',
)


TURNED = Transform(33, 47, orientation=6, upright=(66, 94))
PIXELS = np.zeros((16, 16), np.uint8)
WRITTEN_FORMATS: tuple[Format, ...] = ("jpeg", "png", "webp", "tiff")
MIB = 1 << 20


def cost(call: Callable[[], object]) -> float:
    """Return the CPU seconds of this thread for a call, the best of three."""
    times = []
    for _ in range(3):
        started = time.thread_time()
        call()
        times.append(time.thread_time() - started)
    return min(times)


def outputs(data: bytes, source: str) -> dict[Format, bytes]:
    """Return small outputs with the metadata of an upload, by format."""
    said = transfer.for_output(transfer.read(data, source), width=16, height=16, model="compact")  # type: ignore[arg-type]
    pixels = Pixels(np.zeros((16, 16, 3), np.uint8), None)
    return {
        format_: transfer.write(encoding.encode_pixels(pixels, format_, 90), format_, said)
        for format_ in WRITTEN_FORMATS
    }


def check_bounds(data: bytes, source: str) -> None:
    for format_, answer in outputs(data, source).items():
        assert len(answer) <= 3 * len(data) + 2 * EXTRA_BYTES, format_


def texts(kind: bytes, start: bytes, content: bytes, count: int = 1) -> list[tuple[bytes, bytes]]:
    return [(kind, start + zlib.compress(content, 9))] * count


def hexadecimal(name: str, block: bytes) -> tuple[bytes, bytes]:
    text = f"\n{name}\n{len(block)}\n{block.hex()}\n".encode()
    return b"zTXt", f"Raw profile type {name}".encode() + b"\0\0" + zlib.compress(text, 9)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(body), kind) + body

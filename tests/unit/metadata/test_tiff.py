import functools
import io
import itertools
import struct
import time

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, IptcImagePlugin

from service.formats import tiff_writer
from service.formats.geometry import Transform
from service.formats.registry import Format, Source
from service.metadata import exif, iptc, transfer, xmp
from service.metadata.transfer import Comment, Density, Metadata
from tests.unit.metadata.test_transfer import (
    CAPTION,
    FULL,
    IIM,
    IPTC,
    MAKER_NOTE,
    PACKET,
    SCANNER,
    THUMBNAIL,
    answer,
    values,
)
from tests.unit.metadata.test_transfer import tiff as block_of

ORDERS = pytest.mark.parametrize("order", ["<", ">"])
DEPTHS = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
Entries = dict[int, tuple[int, int, bytes]]
XP_TITLE = "Müritz".encode("utf-16-le") + b"\0\0"


def pixels(dtype: type = np.uint8, channels: int = 3, size: tuple[int, int] = (33, 47)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*size, channels), dtype)


def picture(array: np.ndarray, format_: Format = "tiff") -> bytes:
    """As the service encodes an answer, before its metadata is written."""
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
    return transfer.write(picture(array, format_), format_, said)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def decoded(data: bytes, dtype: type = np.uint8) -> np.ndarray:
    """As other programs see an upright TIFF, BGR: OpenCV multiplies 8-bit pixels by their alpha, Pillow has no 16."""
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


def upload(order: str = "<", *, big: bool = False, changes: Entries | None = None) -> bytes:
    """A gray TIFF of four pixels as a scanner or camera writes it: one strip first, then what the photo is about."""
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


@ORDERS
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_a_scanner(order: str, big: bool) -> None:
    data = upload(order, big=big)
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
    # The other byte order says the same.
    check_tags(loaded(tiff_writer.compact_exif(found.exif, "<>".replace(order, ""))), 6)


@ORDERS
@DEPTHS
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(33, 47), (300, 517), (1, 1)])
def test_pixels_come_back(order: str, dtype: type, channels: int, size: tuple[int, int]) -> None:
    array = pixels(dtype, channels, size)
    said = Metadata(exif=block_of(order, 1), xmp=PACKET, iptc=IPTC)
    data = transfer.write(picture(array), "tiff", said)
    np.testing.assert_array_equal(decoded(data, dtype), array)
    page = page_of(data)
    assert [int(kind) for kind in page.extrasamples] == [2] * (channels - 3)
    tags = Image.open(io.BytesIO(data)).getexif()
    assert (tags[0x10E], tags[0x112]) == (CAPTION, 1)
    assert data[:2] == (b"MM" if order == ">" and dtype is np.uint8 else b"II")


@DEPTHS
def test_nothing_to_write(dtype: type) -> None:
    array = pixels(dtype, 4)
    data = transfer.write(picture(array), "tiff", Metadata())
    np.testing.assert_array_equal(decoded(data, dtype), array)
    assert transfer.read(data, "tiff") == Metadata()


@ORDERS
@DEPTHS
def test_what_a_tiff_is_given_independent_readers_find(order: str, dtype: type) -> None:
    data = transfer.write(picture(pixels(dtype)), "tiff", answer(transfer.read(upload(order), "tiff")))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        assert page.description == CAPTION
        assert page.software == SCANNER
        assert page.tags["DocumentName"].value == "Album 3"
        assert page.tags["XResolution"].value == (600, 1)
        assert page.tags["ExifTag"].value["ExposureTime"] == (1, 125)
        assert page.tags["ExifTag"].value["MakerNote"] == MAKER_NOTE
        assert page.tags["GPSTag"].value["GPSLatitude"] == (53, 1, 25, 1, 1234, 100)
        assert page.tags["Orientation"].value == 1
        assert page.tags[0x8649].value == IPTC
        assert values(page.tags["XMP"].value, "ext:DigitalSourceType") == [xmp.SYNTHETIC_COLORS]
        assert {0x8773, 0xC612} & set(page.tags.keys()) == set()
        tags = [tag.code for tag in page.tags]
        assert tags == sorted(tags)
    if dtype is np.uint8:
        image = opened(data)
        check_tags(image.getexif(), 1)
        assert image.info["dpi"] == (600, 600)
        assert (IptcImagePlugin.getiptcinfo(image) or {})[2, 120] == CAPTION.encode()


@ORDERS
def test_a_maker_note_stays_where_it_is(order: str) -> None:
    block = block_of(order)
    data = transfer.write(picture(pixels()), "tiff", answer(Metadata(exif=block)))
    assert data.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    found = transfer.read(data, "tiff")
    assert found.exif is not None
    assert found.exif.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    again = transfer.write(picture(pixels(np.uint16)), "tiff", answer(found))
    assert again.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    assert THUMBNAIL not in data


def test_a_maker_note_far_away_is_moved() -> None:
    plain = upload(changes={0x8773: (7, 100_000, bytes(100_000))})
    moved = transfer.read(bytes(8) + plain[8:], "tiff")
    assert moved == Metadata()
    far = transfer.write(picture(pixels(size=(300, 300))), "tiff", Metadata())
    (start,) = struct.unpack_from("<I", far, 4)
    details = [(0x927C, 7, MAKER_NOTE)]
    note = len(far)
    whole = far + MAKER_NOTE
    inner = struct.pack("<HHHII", len(details), 0x927C, 7, len(MAKER_NOTE), note) + bytes(4)
    (count,) = struct.unpack_from("<H", far, start)
    entries = far[start + 2 : start + 2 + 12 * count] + struct.pack("<HHII", 0x8769, 4, 1, len(whole))
    first = struct.pack("<H", count + 1) + entries + bytes(4)
    whole = whole[:4] + struct.pack("<I", len(whole) + len(inner)) + whole[8:] + inner + first
    found = transfer.read(whole, "tiff")
    assert loaded(found.exif).get_ifd(ExifTags.IFD.Exif)[0x927C] == MAKER_NOTE
    assert len(found.exif or b"") < 500


@pytest.mark.parametrize(
    ("source", "target"),
    list(itertools.product(("jpeg", "png", "webp", "tiff", "avif"), repeat=2)),
)
def test_between_formats_what_can_be_carried_is(source: Format, target: Format) -> None:
    found = transfer.read(written(pixels(), source, FULL), source)
    data = written(pixels(), target, answer(found))
    image = opened(data)
    tags = image.getexif()
    assert (tags[0x10E], tags[0x131], tags.get(0x112, 1)) == (CAPTION, SCANNER, 1)
    details = tags.get_ifd(ExifTags.IFD.Exif)
    assert (details[0xA001], details[0xA002], details[0xA003]) == (1, 47, 33)
    assert details[0x927C] == MAKER_NOTE
    again = transfer.read(data, target)
    assert again.exif is not None
    assert again.exif.index(MAKER_NOTE) == block_of().index(MAKER_NOTE)
    assert again.xmp is not None
    assert values(again.xmp, "ext:DigitalSourceType") == [xmp.SYNTHETIC_COLORS]
    assert "Großmutter".encode() in again.xmp
    assert again.icc is None
    if source in ("jpeg", "png", "tiff") and target in ("jpeg", "png", "tiff"):
        assert again.iptc == IPTC
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_strip_leaves_the_density() -> None:
    found = transfer.strip(transfer.read(upload(), "tiff"))
    data = transfer.write(picture(pixels()), "tiff", answer(found))
    for secret in (CAPTION.encode(), SCANNER.encode(), MAKER_NOTE, b"1931", b"Album", XP_TITLE):
        assert secret not in data
    image = opened(data)
    assert image.info["dpi"] == (600, 600)
    assert image.getexif()[0x131] == "tomau, synthetic colours by compact 1"


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (Density(300, 300, "inch"), ((300, 1), 2)),
        (Density(118, 118, "centimetre"), ((118, 1), 3)),
        (Density(11811, 11811, "metre"), ((11811, 100), 3)),
        (Density(2, 1, "shape"), ((2, 1), 1)),
        (Density(2**40, 1, "inch"), ((2**32 - 1, 1), 2)),
    ],
)
@ORDERS
def test_density(density: Density, expected: tuple[tuple[int, int], int], order: str) -> None:
    block = exif.with_software(None, "x") if order == "<" else None
    data = transfer.write(picture(pixels()), "tiff", Metadata(density=density, exif=block))
    page = page_of(data)
    assert (page.tags["XResolution"].value, int(page.tags["ResolutionUnit"].value)) == expected
    if density.x < 2**32 and density.unit != "metre":
        assert transfer.read(data, "tiff").density == density


@pytest.mark.parametrize(
    ("numbers", "unit", "expected"),
    [
        ((2835, 10), 2, Density(11161, 11161, "metre")),
        ((11811, 100), 3, Density(11811, 11811, "metre")),
        ((0, 1), 2, None),
        ((5, 0), 2, Density(5, 5, "inch")),
        ((5, 1), 1, None),
        ((300, 1), 7, Density(300, 300, "centimetre")),
    ],
)
def test_resolutions(numbers: tuple[int, int], unit: int, expected: Density | None) -> None:
    side = (5, 1, struct.pack("<II", *numbers))
    changes = {0x11A: side, 0x11B: side, 0x128: (3, 1, struct.pack("<H", unit))}
    assert transfer.read(upload(changes=changes), "tiff").density == expected


def test_comments() -> None:
    one = Metadata(comments=(Comment("Comment", "Müritz"),))
    assert transfer.read(transfer.write(picture(pixels()), "tiff", one), "tiff").exif is not None
    page = page_of(transfer.write(picture(pixels()), "tiff", one))
    assert page.description == "Müritz"
    described = Metadata(comments=one.comments, exif=block_of())
    assert page_of(transfer.write(picture(pixels()), "tiff", described)).description == CAPTION
    two = Metadata(comments=(*one.comments, Comment("Title", "See")))
    assert page_of(transfer.write(picture(pixels()), "tiff", two)).description == ""


@ORDERS
def test_iptc_that_stands_alone(order: str) -> None:
    iim = IIM + bytes(-len(IIM) % 4)
    alone = {0x8649: (1, 0, b""), 0x83BB: (4, len(iim) // 4, iim)}
    assert transfer.read(upload(order, changes=alone), "tiff").iptc == iptc.iim_resource(iim)
    other = iptc.iim_resource(b"x").replace(b"\4\4", b"\4\5", 1)
    beside = {0x8649: (1, len(other), other), 0x83BB: (7, len(IIM), IIM)}
    assert transfer.read(upload(order, changes=beside), "tiff").iptc == other + iptc.iim_resource(IIM)
    both = {0x83BB: (7, 5, b"\x1cold!")}
    assert transfer.read(upload(order, changes=both), "tiff").iptc == IPTC


@ORDERS
def test_a_large_caption_gives_way_in_a_jpeg_only(order: str) -> None:
    long = b"x" * 70_000 + b"\0"
    found = answer(transfer.read(upload(order, changes={0x10E: (2, len(long), long)}), "tiff"))
    for target in ("png", "tiff"):
        assert opened(written(pixels(), target, found)).getexif()[0x10E] == long[:-1].decode()
    tags = opened(written(pixels(), "jpeg", found)).getexif()
    assert 0x10E not in tags
    assert tags[0x131] == SCANNER
    assert tags.get_ifd(ExifTags.IFD.Exif)[0x927C] == MAKER_NOTE


@ORDERS
@DEPTHS
def test_a_block_that_is_cut_short_shows_no_pixels(order: str, dtype: type) -> None:
    block = block_of(order, 1)
    for end in range(0, len(block), 3):
        data = transfer.write(picture(pixels(dtype)), "tiff", Metadata(exif=block[:end]))
        assert page_of(data).description in ("", CAPTION)
        np.testing.assert_array_equal(decoded(data, dtype), pixels(dtype))


def test_a_bmp_and_a_gif() -> None:
    data = bytearray(picture(pixels(), "bmp"))  # type: ignore[arg-type]
    struct.pack_into("<ii", data, 38, 11811, 11811)
    assert opened(bytes(data)).info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert transfer.read(bytes(data), "bmp") == Metadata(density=Density(11811, 11811, "metre"))
    buffer = io.BytesIO()
    Image.fromarray(pixels()).quantize(16).save(buffer, "GIF", comment="Müritz, ".encode() * 100)
    assert transfer.read(buffer.getvalue(), "gif").comments == (Comment("Comment", "Müritz, " * 100),)


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + bytes(7) + b"!\xfe" + b"\1x" * 20_000_000,
        b"GIF89a" + bytes(7) + b"!\xfe\1x\0" * 8_000_000,
        b"GIF89a" + bytes(7) + b"!\xfe" + (b"\xff" + b"x" * 255) * 100_000,
        b"GIF89a",
    ],
    ids=range(4),
)
def test_hostile_gifs(data: bytes) -> None:
    started = time.process_time()
    assert len(transfer.read(data, "gif").comments) <= 1000
    assert time.process_time() - started < 2


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
        opened(written(pixels(), target, found))
    other = transfer.write(picture(pixels(np.uint16)), "tiff", Metadata(exif=data[: 4 << 20]))
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(other, np.uint8), -1), pixels(np.uint16))
    assert time.process_time() - started < 4


@pytest.mark.parametrize(
    "block",
    [
        b"MM\0*\0\0\0\4\0\7" + bytes(90),
        upload(big=True),
    ],
    ids=["its directory is its header", "a BigTIFF"],
)
def test_a_block_that_is_none(block: bytes) -> None:
    assert exif.corrected(block, Transform(47, 33)) is None
    assert answer(Metadata(exif=block)).exif == answer(Metadata()).exif


@ORDERS
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_that_is_cut_short(order: str, big: bool) -> None:
    data = upload(order, big=big)
    for end in range(len(data)):
        found = transfer.read(data[:end], "tiff")
        assert found.xmp in (None, PACKET)
        assert answer(found).exif is not None


PLAIN = {format_: picture(pixels(size=(8, 9)), format_) for format_ in ("jpeg", "tiff")}
UPLOADS: dict[Source, list[bytes]] = {
    "tiff": [upload(order, big=big) for order in "<>" for big in (False, True)],
    "gif": [b"GIF89a" + bytes(7) + b"!\xfe\3abc\0!\xf9\4\0\0\0\0\0,"],
    "bmp": [picture(pixels(size=(8, 9)), "bmp")],  # type: ignore[arg-type]
}
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=8), st.integers(0, 8)), max_size=8)


# Pillow's, of values that lie outside a damaged block: they are kept as they came.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", list(UPLOADS))
@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 3), changes=CHANGES, keeps_length=st.booleans())
def test_no_mutation_makes_it_raise(
    source: Source, seed: int, changes: list[tuple[int, bytes, int]], keeps_length: bool
) -> None:
    seeds = UPLOADS[source]
    data = seeds[seed % len(seeds)]
    for place, new, removed in changes:
        start = place % (len(data) + 1)
        data = data[:start] + new + data[start + (len(new) if keeps_length else removed) :]
    found = transfer.read(data, source)
    for format_, plain in PLAIN.items():
        for said in (found, answer(found)):
            whole = transfer.write(plain, format_, said)
            seen = decoded(whole)
            if format_ == "tiff" and said is not found:
                np.testing.assert_array_equal(seen, pixels(size=(8, 9)))

"""Tests of writing EXIF blocks, and TIFFs with metadata."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, IptcImagePlugin

from service.formats import containers, tiff_writer
from service.imaging import encoding
from service.imaging.photo import Pixels
from service.metadata import exif, transfer, xmp
from service.metadata.transfer import Comment, Metadata
from tests.conftest import encoded
from tests.samples.metadata import (
    CAPTION,
    IPTC,
    MAKER_NOTE,
    MIB,
    ORDERS,
    PACKET,
    PIXELS,
    SCANNER,
    THUMBNAIL,
    TURNED,
    answer,
    ascii_value,
    check_bounds,
    check_tags,
    cost,
    decoded,
    encoded_image,
    exif_block,
    loaded,
    noise,
    opened,
    page_of,
    scanner_tiff,
    values,
    written,
)

DEPTHS = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])


@ORDERS
@DEPTHS
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(33, 47), (300, 517), (1, 1)])
def test_pixels_come_back(order: str, dtype: type, channels: int, size: tuple[int, int]) -> None:
    array = noise(dtype, channels, size)
    said = Metadata(exif=exif_block(order, 1), xmp=PACKET, iptc=IPTC)
    data = transfer.write(encoded_image(array), "tiff", said)
    np.testing.assert_array_equal(decoded(data, dtype), array)
    page = page_of(data)
    assert [int(kind) for kind in page.extrasamples] == [2] * (channels - 3)
    tags = Image.open(io.BytesIO(data)).getexif()
    assert (tags[0x10E], tags[0x112]) == (CAPTION, 1)
    assert data[:2] == (b"MM" if order == ">" and dtype is np.uint8 else b"II")


@DEPTHS
def test_no_metadata_to_write(dtype: type) -> None:
    array = noise(dtype, 4)
    data = transfer.write(encoded_image(array), "tiff", Metadata())
    np.testing.assert_array_equal(decoded(data, dtype), array)
    assert transfer.read(data, "tiff") == Metadata()


@ORDERS
@DEPTHS
def test_what_a_tiff_is_given_independent_readers_find(order: str, dtype: type) -> None:
    data = transfer.write(encoded_image(noise(dtype)), "tiff", answer(transfer.read(scanner_tiff(order), "tiff")))
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
    block = exif_block(order)
    data = transfer.write(encoded_image(noise()), "tiff", answer(Metadata(exif=block)))
    assert data.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    found = transfer.read(data, "tiff")
    assert found.exif is not None
    assert found.exif.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    again = transfer.write(encoded_image(noise(np.uint16)), "tiff", answer(found))
    assert again.index(MAKER_NOTE) == block.index(MAKER_NOTE)
    assert THUMBNAIL not in data


def test_a_maker_note_far_away_is_moved() -> None:
    plain = scanner_tiff(changes={0x8773: (7, 100_000, bytes(100_000))})
    moved = transfer.read(bytes(8) + plain[8:], "tiff")
    assert moved == Metadata()
    far = transfer.write(encoded_image(noise(size=(300, 300))), "tiff", Metadata())
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


@ORDERS
def test_a_large_caption_gives_way_in_a_jpeg_only(order: str) -> None:
    long = b"x" * 70_000 + b"\0"
    found = answer(transfer.read(scanner_tiff(order, changes={0x10E: (2, len(long), long)}), "tiff"))
    for target in ("png", "tiff"):
        assert opened(written(noise(), target, found)).getexif()[0x10E] == long[:-1].decode()
    tags = opened(written(noise(), "jpeg", found)).getexif()
    assert 0x10E not in tags
    assert tags[0x131] == SCANNER
    assert tags.get_ifd(ExifTags.IFD.Exif)[0x927C] == MAKER_NOTE


@ORDERS
@DEPTHS
def test_a_block_that_is_cut_short_shows_no_pixels(order: str, dtype: type) -> None:
    block = exif_block(order, 1)
    for end in range(0, len(block), 3):
        data = transfer.write(encoded_image(noise(dtype)), "tiff", Metadata(exif=block[:end]))
        assert page_of(data).description in ("", CAPTION)
        np.testing.assert_array_equal(decoded(data, dtype), noise(dtype))


@pytest.mark.parametrize("text", ["Müritz", "Müritz\0", "oddly\0\0", "evenly"])
def test_the_description_of_a_tiff_ends_in_one_nul(text: str) -> None:
    plain = encoding.encode_pixels(Pixels(np.zeros((8, 9, 3), np.uint8), None), "tiff", 90)
    data = transfer.write(plain, "tiff", Metadata(comments=(Comment("Comment", text),)))
    assert ascii_value(data, 0x10E) == text.rstrip("\0").encode() + b"\0"


def overlapping(entries: int, size: int, first: tuple[int, ...] = tuple(range(0x10D, 0x140))) -> bytes:
    """Return a block whose three directories have many values that share the same bytes."""

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

"""Tests of correcting EXIF blocks."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from service.formats import containers, decoding_limits, tiff_writer
from service.formats.geometry import Transform
from service.imaging import decoding, identification
from service.metadata import exif, transfer
from service.metadata.transfer import Metadata
from tests.conftest import encoded
from tests.samples.metadata import (
    CAPTION,
    IFD1,
    MAKER_NOTE,
    ORDERS,
    PIXELS,
    PROFILE,
    SAME,
    THUMBNAIL,
    TURNED,
    answer,
    ascii_value,
    directory,
    exif_block,
    hexadecimal,
    scanner_tiff,
)


def tags_of(block: bytes, order: str) -> list[int]:
    """Return the tags of the first directory, in their order."""
    (at,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, at)
    return [struct.unpack_from(order + "H", block, at + 2 + 12 * i)[0] for i in range(count)]


@ORDERS
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_reset_and_nothing_else_moves(order: str, orientation: int) -> None:
    block = exif_block(order, orientation)
    changed = exif.corrected(block, Transform(47, 33))
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert tags[0x112] == 1
    differing = sum(a != b for a, b in zip(block, changed, strict=False))
    assert differing <= 18
    assert block.index(MAKER_NOTE) == changed.index(MAKER_NOTE)


@ORDERS
def test_the_thumbnail_is_gone_with_its_bytes(order: str) -> None:
    changed = exif.corrected(exif_block(order), Transform(47, 33))
    assert changed is not None
    assert THUMBNAIL not in changed
    tags = Image.Exif()
    tags.load(changed)
    assert not tags.get_ifd(IFD1)


@ORDERS
def test_a_thumbnail_before_other_things_is_only_unlinked(order: str) -> None:
    # The maker note is moved behind the thumbnail.
    block = bytearray(exif_block(order))
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
    changed = exif.corrected(exif_block(order), Transform(70_000, 80_000))
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert (tags[0x100], tags[0x101]) == (70_000, 80_000)


@ORDERS
@pytest.mark.parametrize("software", [None, "", "   "])
def test_software_is_named_where_nothing_is(order: str, software: str | None) -> None:
    block = answer(Metadata(exif=exif_block(order, software=software))).exif
    assert block is not None
    tags = Image.Exif()
    tags.load(block)
    assert tags[0x131] == "tomau, synthetic colours by compact 1"
    assert tags_of(block, order) == [0x100, 0x101, 0x10E, 0x112, 0x11A, 0x131, 0x8769]
    assert (tags[0x10E], tags[0x112]) == (CAPTION, 1)
    assert tags.get_ifd(ExifTags.IFD.Exif)[0x927C] == MAKER_NOTE
    assert answer(Metadata(exif=block), model="other").exif == block


@ORDERS
@pytest.mark.parametrize("damage", ["header", "offset", "count", "cut"])
def test_a_damaged_block_is_left_out(order: str, damage: str) -> None:
    block = exif_block(order)
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
    block = exif_block(order)
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


def test_a_block_near_the_limit_is_not_pushed_over_it() -> None:
    block = exif_block(software=None).replace(THUMBNAIL, THUMBNAIL)
    near = block + bytes(tiff_writer.MAX_JPEG_BYTES - len(block))
    assert exif.with_software(near, "tomau") == near


@settings(max_examples=300, deadline=None)
@given(
    order=st.sampled_from("<>"),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=12),
    end=st.integers(0, 1000),
)
def test_no_block_makes_it_raise(order: str, changes: list[tuple[int, int]], end: int) -> None:
    block = bytearray(exif_block(order, software=None))
    for place, value in changes:
        block[place % len(block)] = value
    found = answer(Metadata(exif=bytes(block[: max(1, len(block) - end)]), xmp=None))
    assert found.exif is not None
    again = answer(found)
    assert again.exif is not None


@pytest.mark.parametrize(
    "block",
    [
        b"MM\0*\0\0\0\4\0\7" + bytes(90),
        scanner_tiff(big=True),
    ],
    ids=["its directory is its header", "a BigTIFF"],
)
def test_a_block_that_is_none(block: bytes) -> None:
    assert exif.corrected(block, Transform(47, 33)) is None
    assert answer(Metadata(exif=block)).exif == answer(Metadata()).exif


@ORDERS
def test_what_exif_says_of_storage_is_gone(order: str) -> None:
    def short(*values: int) -> bytes:
        return struct.pack(f"{order}{len(values)}H", *values)

    caption = b"My grandmother\0"
    first = [
        (0x100, 3, 1, short(4000)),
        (0x101, 3, 1, short(3000)),
        (0x102, 3, 3, short(16, 16, 16)),
        (0x103, 3, 1, short(1)),
        (0x106, 3, 1, short(1)),
        (0x10E, 2, len(caption), caption),
        (0x111, 4, 1, struct.pack(order + "I", 9)),
        (0x115, 3, 1, short(1)),
        (0x116, 3, 1, short(3000)),
        (0x117, 4, 1, struct.pack(order + "I", 9)),
        (0x11C, 3, 1, short(1)),
        (0x12D, 3, 4, short(1, 2, 3, 4)),
        (0x13E, 5, 1, struct.pack(order + "II", 1, 3)),
        (0x13F, 5, 1, struct.pack(order + "II", 1, 3)),
        (0x140, 3, 4, short(1, 2, 3, 4)),
        (0x14A, 4, 1, struct.pack(order + "I", 8)),
        (0x152, 3, 1, short(0)),
        (0x212, 3, 2, short(2, 2)),
        (0x213, 3, 1, short(2)),
        (0x214, 5, 1, struct.pack(order + "II", 1, 3)),
        (0x2BC, 1, 8, b"<x:xmpme"),
        (0x83BB, 4, 2, b"\x1c\2\x78\0\3cap"),
        (0x8649, 1, 8, b"8BIM\4\4\0\0"),
        (0x8769, 4, 1, bytes(4)),
        (0x8773, 7, len(PROFILE), PROFILE),
        (0xC612, 1, 4, b"\1\4\0\0"),
        (0xC68F, 7, len(PROFILE), PROFILE),
    ]
    at = 8 + len(directory(order, 8, first))
    first[-4] = (0x8769, 4, 1, struct.pack(order + "I", at))
    taken = b"1931:05:04 10:00:00\0"
    details = [
        (0x102, 3, 1, short(16)),
        (0x8773, 7, len(PROFILE), PROFILE),
        (0x8897, 1, 1, b"\1"),
        (0x9003, 2, len(taken), taken),
        (0x9101, 7, 4, b"\1\0\0\0"),
        (0x9102, 5, 1, struct.pack(order + "II", 4, 1)),
        (0x9286, 7, 21, b"ASCII\0\0\0oplus_8388608"),
        (0xA001, 3, 1, short(2)),
        (0xA500, 5, 1, struct.pack(order + "II", 22, 10)),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    block = head + directory(order, 8, first) + directory(order, at, details)
    changed = exif.corrected(block, SAME)
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert dict(tags) == {0x100: 47, 0x101: 33, 0x10E: "My grandmother", 0x8769: at}
    assert tags.get_ifd(0x8769) == {0x9003: "1931:05:04 10:00:00", 0xA001: 1}
    # The bytes of removed values are gone too.
    for gone in (PROFILE, b"oplus", b"<x:xmp", b"8BIM"):
        assert gone not in changed
    assert changed.index(taken) == block.index(taken)


@ORDERS
@pytest.mark.parametrize("index", [b"R03\0", b"R98\0", b"THM\0"])
def test_what_interoperability_says_of_colours(order: str, index: bytes) -> None:
    first = [(0x8769, 4, 1, struct.pack(order + "I", 26))]
    details = [(0xA005, 4, 1, struct.pack(order + "I", 44))]
    interop = [(1, 2, 4, index), (0x1001, 3, 1, struct.pack(order + "H", 4000)), (0x1002, 4, 1, bytes(4))]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    block = head + directory(order, 8, first) + directory(order, 26, details) + directory(order, 44, interop)
    changed = exif.corrected(block, SAME)
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    found = tags.get_ifd(0xA005)
    assert found[1] == ("R98" if index == b"R03\0" else index[:3].decode())
    assert (found[0x1001], found[0x1002]) == (47, 33)


@pytest.mark.parametrize("software", ["tomau", "tomau!", "tomau, synthetic colours by compact 1", "a", "abc"])
def test_software_ends_in_one_nul(software: str) -> None:
    block = exif.with_software(None, software)
    tags = Image.Exif()
    tags.load(block)
    assert tags[0x131] == software
    if len(software) > 3:
        assert ascii_value(block, 0x131) == software.encode() + b"\0"
    other = Image.Exif()
    other[0x10E] = "odd"
    block = exif.with_software(other.tobytes()[6:], software)
    tags.load(block)
    assert (tags[0x131], tags[0x10E]) == (software, "odd")


@ORDERS
def test_what_is_kept_among_what_is_gone_is_not_wiped(order: str) -> None:
    # A profile and a caption that overlap.
    shared = b"shared by both" * 5
    first = [(0x10E, 2, len(shared), shared), (0x8773, 7, 4, bytes(4))]
    block = bytearray(
        (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + directory(order, 8, first)
    )
    start = block.index(shared)
    struct.pack_into(order + "HHII", block, 22, 0x8773, 7, len(shared) - 10, start + 10)
    changed = exif.corrected(bytes(block), SAME)
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    assert dict(tags) == {0x10E: shared.decode()}


def excessive(count: int, size: int) -> bytes:
    """A block with `count` entries, all with the same `size` bytes as their value."""
    place = 8 + 2 + 12 * count + 4
    body = b"".join(struct.pack("<HHII", 0xC000 + tag & 0xFFFF, 7, size, place) for tag in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + body + bytes(4) + bytes(size)


def with_exif(source: str, block: bytes) -> bytes:
    if source == "jpeg":
        # Without a density in a JFIF header, Pillow searches EXIF for one, and joins the segments.
        plain = encoded(PIXELS, "JPEG")
        parts = [(0xE1, b"Exif\0\0" + block[at : at + 65_000]) for at in range(0, len(block), 65_000)]
        return containers.jpeg_with_segments(plain[:2] + plain[20:], parts)
    if source == "webp":
        return containers.webp_with_metadata(encoded(np.dstack([PIXELS] * 3), "WEBP"), block, None)
    chunk = (b"eXIf", block) if source == "png" else hexadecimal("exif", block)
    return containers.png_with_chunks(encoded(PIXELS, "PNG"), [chunk])


# Pillow may warn first. The service ignores its warnings.
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
    # The count of entries is damaged: a reader stops at the end of the block.
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


@pytest.mark.parametrize(("orientation", "scale"), [(1, 1), (1, 0.5), (6, 1), (3, 1)])
def test_places_in_exif(orientation: int, scale: float) -> None:
    block = Image.Exif()
    block[0x112] = orientation
    details = block.get_ifd(0x8769)
    details[0x9214], details[0xA214] = (80, 60, 20, 30), (80, 60)
    details[0xA20E], details[0xA20F], details[0xA210] = 3000.0, 1500.0, 3
    details[0x9003] = "1931:05:04 10:00:00"
    upright = (120, 160) if orientation == 6 else (160, 120)
    transform = Transform(round(upright[0] * scale), round(upright[1] * scale), orientation, upright)
    changed = exif.corrected(block.tobytes()[6:], transform)
    assert changed is not None
    tags = Image.Exif()
    tags.load(changed)
    found = tags.get_ifd(0x8769)
    same = orientation == 1 and scale == 1
    assert (0x9214 in found, 0xA214 in found) == (same, same)
    assert found.get(0xA20E) == (None if scale != 1 else 1500 if orientation == 6 else 3000)
    assert found[0x9003] == "1931:05:04 10:00:00"

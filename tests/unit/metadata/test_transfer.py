"""Tests of transferring metadata from an upload to an output."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from service.formats import containers
from service.formats.registry import Format, Source
from service.imaging import encoding
from service.imaging.photo import Pixels
from service.metadata import transfer, xmp
from service.metadata.transfer import Density, Metadata
from tests.conftest import encoded
from tests.samples.metadata import (
    CAPTION,
    FORMATS,
    FULL,
    IFD1,
    IIM,
    IPTC,
    MAKER_NOTE,
    NAMESPACES,
    ORDERS,
    PACKET,
    PIXELS,
    SCANNER,
    XP_TITLE,
    answer,
    check_bounds,
    decoded,
    directory,
    encoded_image,
    exif_block,
    hexadecimal,
    image_of,
    noise,
    opened,
    packet_of,
    resource,
    scanner_tiff,
    texts,
    tree,
    values,
    written,
)
from tests.samples.packets import packet


@pytest.mark.parametrize(("source", "target"), list(itertools.product(FORMATS, FORMATS)))
def test_between_formats_what_can_be_carried_is(pixels: np.ndarray, source: Format, target: Format) -> None:
    upload = transfer.write(image_of(pixels, source), source, FULL)
    data = transfer.write(image_of(pixels, target), target, answer(transfer.read(upload, source)))
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
    found = transfer.read(transfer.write(image_of(pixels, format_), format_, FULL), format_)
    assert (found.exif, found.xmp, found.icc) == (FULL.exif, FULL.xmp, None)
    if format_ != "webp":
        assert (found.iptc, found.comments) == (FULL.iptc, FULL.comments)
        assert found.density == Density(*((300, 300, "inch") if format_ == "jpeg" else (11811, 11811, "metre")))
    again = transfer.write(image_of(pixels, format_), format_, found)
    assert transfer.read(again, format_) == found


@pytest.mark.parametrize("format_", FORMATS)
def test_an_orientation_that_only_xmp_tells(pixels: np.ndarray, format_: Format) -> None:
    upload = transfer.write(image_of(pixels, format_), format_, Metadata(xmp=PACKET))
    assert opened(upload).getexif()[0x112] == 6
    found = answer(transfer.read(upload, format_))
    assert opened(transfer.write(image_of(pixels, format_), format_, found)).getexif().get(0x112, 1) == 1


@pytest.mark.parametrize("format_", FORMATS)
def test_a_photo_that_said_nothing_says_that_its_colours_are_synthetic(pixels: np.ndarray, format_: Format) -> None:
    data = transfer.write(image_of(pixels, format_), format_, answer(Metadata()))
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


def test_strip_leaves_the_density(pixels: np.ndarray) -> None:
    stripped = transfer.strip(FULL)
    assert stripped == Metadata(density=FULL.density)
    data = transfer.write(image_of(pixels, "jpeg"), "jpeg", answer(stripped))
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
    data = transfer.write(image_of(pixels, "jpeg"), "jpeg", answer(stripped, model=None))
    assert b"Anna" not in data
    found = [values(packet_of(data), f"ext:{name}") for _, name in xmp.NOTE] if stripped.xmp else []
    assert [value for values_ in found for value in values_][: len(said)] == said
    assert bool(stripped.xmp) == bool(said)


PLAIN_IMAGES = {
    format_: encoding.encode_pixels(Pixels(np.full((8, 9, 3), 99, np.uint8), None), format_, 90) for format_ in FORMATS
}


SEED_IMAGES = {format_: transfer.write(plain, format_, FULL) for format_, plain in PLAIN_IMAGES.items()}


# Pillow warns of values that lie outside a damaged block. They are kept unchanged.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=8), st.integers(0, 8)), max_size=8))
def test_no_mutation_makes_it_raise(format_: Format, changes: list[tuple[int, bytes, int]]) -> None:
    data = SEED_IMAGES[format_]
    for place, new, removed in changes:
        start = place % (len(data) + 1)
        data = data[:start] + new + data[start + removed :]
    found = transfer.read(data, format_)
    for target in FORMATS:
        written = transfer.write(PLAIN_IMAGES[target], target, answer(found))
        Image.open(io.BytesIO(written)).load()


def uneven(order: str, orientation: int) -> bytes:
    """Return a block with 200 x 100 pixels per inch, and 3,000 x 1,500 per centimetre of sensor."""

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
    found = transfer.read(transfer.write(image_of(pixels, format_), format_, said), format_)
    data = transfer.write(
        image_of(pixels, format_), format_, answer(transfer.strip(found) if is_stripped else found, model=None)
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


@pytest.mark.parametrize(
    ("source", "target"),
    list(itertools.product(("jpeg", "png", "webp", "tiff", "avif"), repeat=2)),
)
def test_between_all_formats_what_can_be_carried_is(source: Format, target: Format) -> None:
    found = transfer.read(written(noise(), source, FULL), source)
    data = written(noise(), target, answer(found))
    image = opened(data)
    tags = image.getexif()
    assert (tags[0x10E], tags[0x131], tags.get(0x112, 1)) == (CAPTION, SCANNER, 1)
    details = tags.get_ifd(ExifTags.IFD.Exif)
    assert (details[0xA001], details[0xA002], details[0xA003]) == (1, 47, 33)
    assert details[0x927C] == MAKER_NOTE
    again = transfer.read(data, target)
    assert again.exif is not None
    assert again.exif.index(MAKER_NOTE) == exif_block().index(MAKER_NOTE)
    assert again.xmp is not None
    assert values(again.xmp, "ext:DigitalSourceType") == [xmp.SYNTHETIC_COLORS]
    assert "Großmutter".encode() in again.xmp
    assert again.icc is None
    if source in ("jpeg", "png", "tiff") and target in ("jpeg", "png", "tiff"):
        assert again.iptc == IPTC
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_strip_leaves_the_density_of_a_tiff() -> None:
    found = transfer.strip(transfer.read(scanner_tiff(), "tiff"))
    data = transfer.write(encoded_image(noise()), "tiff", answer(found))
    for secret in (CAPTION.encode(), SCANNER.encode(), MAKER_NOTE, b"1931", b"Album", XP_TITLE):
        assert secret not in data
    image = opened(data)
    assert image.info["dpi"] == (600, 600)
    assert image.getexif()[0x131] == "tomau, synthetic colours by compact 1"


TIFF_AND_JPEG = {format_: encoded_image(noise(size=(8, 9)), format_) for format_ in ("jpeg", "tiff")}
OTHER_UPLOADS: dict[Source, list[bytes]] = {
    "tiff": [scanner_tiff(order, big=big) for order in "<>" for big in (False, True)],
    "gif": [b"GIF89a" + bytes(7) + b"!\xfe\3abc\0!\xf9\4\0\0\0\0\0,"],
    "bmp": [encoded_image(noise(size=(8, 9)), "bmp")],  # type: ignore[arg-type]
}


CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=8), st.integers(0, 8)), max_size=8)


# Pillow warns of values that lie outside a damaged block. They are kept unchanged.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("source", list(OTHER_UPLOADS))
@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 3), changes=CHANGES, keeps_length=st.booleans())
def test_no_mutation_of_a_tiff_bmp_or_gif_makes_it_raise(
    source: Source, seed: int, changes: list[tuple[int, bytes, int]], keeps_length: bool
) -> None:
    seeds = OTHER_UPLOADS[source]
    data = seeds[seed % len(seeds)]
    for place, new, removed in changes:
        start = place % (len(data) + 1)
        data = data[:start] + new + data[start + (len(new) if keeps_length else removed) :]
    found = transfer.read(data, source)
    for format_, plain in TIFF_AND_JPEG.items():
        for said in (found, answer(found)):
            whole = transfer.write(plain, format_, said)
            seen = decoded(whole)
            if format_ == "tiff" and said is not found:
                np.testing.assert_array_equal(seen, noise(size=(8, 9)))


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


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP"])
def test_an_answer_is_not_much_larger_than_its_upload(source: str) -> None:
    block = Image.Exif()
    block[0x10E] = "x" * 50_000
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert("RGB").save(buffer, source, exif=block)
    check_bounds(buffer.getvalue(), source.lower())


def test_the_density_is_turned_as_the_picture_is_and_not_as_exif_says() -> None:
    block = Image.Exif()
    block[0x112], block[0x11A], block[0x11B], block[0x128] = 6, 200.0, 100.0, 2
    said = Metadata(exif=block.tobytes()[6:], density=Density(200, 100, "inch"), orientation=1)
    kept = transfer.for_output(said, width=160, height=120, model=None)
    assert kept.density == Density(200, 100, "inch")
    turned = transfer.for_output(
        Metadata(exif=said.exif, density=said.density, orientation=6), width=1, height=1, model=None
    )
    assert turned.density == Density(100, 200, "inch")

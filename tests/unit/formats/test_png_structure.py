"""Tests that damaged chunks other than the pixels are left out of a PNG, and damaged pixels are refused."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from service.errors import UnreadableImage, UnsupportedType
from service.formats import decoding_limits, tiff_tags
from service.imaging import decoding, identification
from service.imaging.photo import Photo
from service.metadata import transfer

LIMITS = decoding_limits.Limits(max_pixels=100_000_000, max_side=65_500)
COLOR = np.random.default_rng(2).integers(0, 256, (33, 47, 3), np.uint8)
GRAY = COLOR[..., 1]
PALETTE = bytes(value for index in range(256) for value in (index, 255 - index, index))


def chunk(kind: bytes, body: bytes, *, damage: int = 0, size: int | None = None) -> bytes:
    """Return a chunk, with a wrong checksum or another length on request."""
    length = len(body) if size is None else size
    return struct.pack(">I4s", length, kind) + body + (zlib.crc32(kind + body) ^ damage).to_bytes(4)


def png(color_type: int, depth: int, pixels: np.ndarray, *chunks: bytes) -> bytes:
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


FILES = {
    "colour": png(2, 8, COLOR),
    "gray": png(0, 8, GRAY),
    "alpha": png(6, 8, np.dstack([COLOR, GRAY])),
    "palette": png(3, 8, GRAY, chunk(b"PLTE", PALETTE), chunk(b"tRNS", bytes(range(90)))),
    "a clear gray": png(0, 8, GRAY, chunk(b"tRNS", struct.pack(">H", int(GRAY[3, 4])))),
    "a clear colour": png(2, 8, COLOR, chunk(b"tRNS", struct.pack(">HHH", *map(int, COLOR[3, 4])))),
    "deep": png(2, 16, COLOR.astype(">u2") * 257),
    "deep gray": png(0, 16, GRAY.astype(">u2") * 257),
}


def decode(data: bytes) -> Photo:
    icc = transfer.read(data, "png").icc
    return decoding.decode(identification.identify(data, LIMITS), icc=icc)


def before_pixels(data: bytes, added: bytes) -> bytes:
    place = data.index(b"IDAT") - 4
    return data[:place] + added + data[place:]


def after_pixels(data: bytes, added: bytes) -> bytes:
    place = data.index(b"IEND") - 4
    return data[:place] + added + data[place:]


def is_same(one: Photo, other: Photo) -> bool:
    if (one.alpha is None) != (other.alpha is None):
        return False
    return np.array_equal(one.luma, other.luma) and (one.alpha is None or np.array_equal(one.alpha, other.alpha))


KINDS = (
    *(b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"gAMA", b"cHRM", b"pHYs", b"sBIT", b"bKGD", b"hIST", b"tIME"),
    *(b"sPLT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"oFFs", b"sTER", b"acTL", b"fcTL", b"fdAT", b"vpAg", b"caBX"),
)
BODIES = (b"", b"\0", b"ab", bytes(4), b"\xff" * 9, b"a\0\0garbage", b"a\0\x09abc", bytes(40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_chunk_that_makes_no_sense_is_left_out(name: str, kind: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    expected = decode(FILES[name])
    for body in BODIES:
        for added in (chunk(kind, body), chunk(kind, body) * 2, chunk(kind, body, damage=1)):
            assert is_same(decode(before_pixels(FILES[name], added)), expected), body
            assert is_same(decode(after_pixels(FILES[name], added)), expected), body
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_chunk_with_a_wrong_checksum_is_left_out(kind: bytes) -> None:
    sound = {b"gAMA": struct.pack(">I", 100_000), b"eXIf": b"MM\0*" + bytes(20), b"acTL": struct.pack(">II", 3, 0)}
    added = chunk(kind, sound.get(kind, b"Title\0words"), damage=7)
    for data in FILES.values():
        assert is_same(decode(before_pixels(data, added)), decode(data))


def split(data: bytes) -> bytes:
    """Return the PNG with its pixels in two chunks, and a text between them."""
    place = data.index(b"IDAT") - 4
    (size,) = struct.unpack_from(">I", data, place)
    body = data[place + 8 : place + 8 + size]
    parts = chunk(b"IDAT", body[:9]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", b""), chunk(b"IDAT", body[9:])
    return b"".join([data[:place], *parts, data[place + 12 + size :]])


Change = Callable[[bytes], bytes]
CHANGES: dict[str, Change] = {
    "more behind the end": lambda data: data + b"junk" * 99,
    "no end": lambda data: data[:-12],
    "half an end": lambda data: data[:-6],
    "an end with a wrong checksum": lambda data: data[:-1] + b"x",
    "junk instead of the end": lambda data: data[:-12] + b"abcdefghijklmnop",
    "half a checksum of the pixels": lambda data: data[:-14],
    "no checksum of the pixels": lambda data: data[:-16],
    "pixels in pieces": split,
    "a second chunk of pixels that is not there": lambda data: data[:-12] + data[data.index(b"IDAT") - 4 :][:8],
    "a length of the pixels beyond the file": lambda data: data.replace(
        data[data.index(b"IDAT") - 4 :][:4] + b"IDAT", b"\0\1\0\0IDAT"
    ),
    "a length beyond the file": lambda data: before_pixels(data, chunk(b"tEXt", b"a\0bcd", size=0x7FFF_FFFF)),
    "a length without end": lambda data: before_pixels(data, chunk(b"tEXt", b"a\0bcd", size=0xFFFF_FFFF)),
    "a length too short": lambda data: before_pixels(data, chunk(b"tEXt", b"a\0bcdefgh", size=3)),
    "a kind that is not a word": lambda data: before_pixels(data, chunk(b"t\0Xt", b"a\0b")),
    "an unknown critical chunk that is damaged": lambda data: before_pixels(data, chunk(b"QQQQ", b"a", damage=1)),
    "a length that leads into the pixels": lambda data: before_pixels(data, chunk(b"tEXt", b"a\0b", size=30)),
    "a length that leads past the pixels": lambda data: before_pixels(
        data, chunk(b"tEXt", b"a\0b", size=len(data) - data.index(b"IDAT") + 3)
    ),
    "a length that leads into the palette": lambda data: data[:33] + chunk(b"tEXt", b"a\0b", size=23) + data[33:],
    "pixels with a wrong checksum": lambda data: (
        data[: data.index(b"IEND") - 5] + bytes([data[data.index(b"IEND") - 5] ^ 1]) + data[data.index(b"IEND") - 4 :]
    ),
    "two headers": lambda data: data[:33] + data[8:33] + data[33:],
    "transparency behind the pixels": lambda data: after_pixels(data, chunk(b"tRNS", b"\0\1\0\1\0\1")),
    "a damaged transparency": lambda data: before_pixels(data, chunk(b"tRNS", b"\0\1\0\1\0\1", damage=1)),
    "a second palette": lambda data: before_pixels(data, chunk(b"PLTE", b"\1\2\3")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FILES)
def test_what_is_odd_beside_the_pixels_does_no_harm(name: str, change: str) -> None:
    assert is_same(decode(CHANGES[change](FILES[name])), decode(FILES[name]))


@pytest.mark.parametrize("added", [chunk(b"sRGB", b"\x63"), chunk(b"cICP", b"\1\x0d\1\1"), chunk(b"gAMA", bytes(4))])
def test_odd_chunks_are_nothing_to_standard_error(added: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    decode(before_pixels(FILES["deep"], added))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "body"),
    [("gray", b"\1"), ("gray", b"\1\2\3"), ("colour", b"\0\1"), ("alpha", b"\0\1"), ("deep", b"\0"), ("palette", b"")],
)
def test_a_transparency_of_a_wrong_length_is_left_out(name: str, body: bytes) -> None:
    data = FILES["palette" if name == "palette" else name]
    if name == "palette":
        data = png(3, 8, GRAY, chunk(b"PLTE", PALETTE))
    assert is_same(decode(before_pixels(data, chunk(b"tRNS", body))), decode(data))


def test_a_transparency_longer_than_the_palette_is_cut() -> None:
    few = GRAY % 4
    data = png(3, 8, few, chunk(b"PLTE", PALETTE[:12]), chunk(b"tRNS", bytes([9, 8, 7, 6, 5, 4])))
    np.testing.assert_array_equal(decode(data).alpha, 9 - few)


def test_of_a_clear_value_only_the_bits_of_the_depth_count() -> None:
    clear = int(GRAY[3, 4])
    alpha = decode(png(0, 8, GRAY, chunk(b"tRNS", struct.pack(">H", 0xAB00 | clear)))).alpha
    np.testing.assert_array_equal(alpha, 255 * (clear != GRAY))


DAMAGE: dict[str, Change] = {
    "a header with a wrong checksum": lambda data: data[:32] + bytes([data[32] ^ 1]) + data[33:],
    "a header alone": lambda data: data[:33],
    "a cut header": lambda data: data[:20],
    "cut pixels": lambda data: data[:-60],
    "no pixels": lambda data: data[: data.index(b"IDAT") - 4] + chunk(b"IEND", b""),
}


@pytest.mark.parametrize("change", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_damaged_pixels_are_refused(name: str, change: str) -> None:
    with pytest.raises(UnreadableImage):
        decode(DAMAGE[change](FILES[name]))


@pytest.mark.parametrize("palette", [b"", chunk(b"PLTE", PALETTE, damage=1)])
def test_without_a_sound_palette_there_is_no_picture(palette: bytes) -> None:
    with pytest.raises(UnreadableImage):
        decode(png(3, 8, GRAY, palette))


def test_files_that_other_readers_alone_understand() -> None:
    with pytest.raises(UnsupportedType, match="QQQQ"):
        decode(before_pixels(FILES["gray"], chunk(b"QQQQ", b"a")))
    data = FILES["gray"]
    with pytest.raises(UnsupportedType, match="Apple"):
        decode(data[:8] + chunk(b"CgBI", b"\x50\0\x20\2") + data[8:])


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iTXt packed", b"eXIf", b"eXIf with its JPEG name"])
def test_the_orientation_is_found_in_every_place(kind: bytes) -> None:
    exif = Image.Exif()
    exif[tiff_tags.ORIENTATION] = 6
    block = exif.tobytes()
    assert block.startswith(b"Exif\0\0")
    text = b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    added = {
        b"tEXt": chunk(b"tEXt", b"Raw profile type exif\0" + text),
        b"zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
        b"iTXt": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        b"iTXt packed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0name\0" + zlib.compress(xmp)),
        b"eXIf": chunk(b"eXIf", block[6:]),
        b"eXIf with its JPEG name": chunk(b"eXIf", block),
    }[kind]
    expected = np.rot90(GRAY, -1)
    for data in (before_pixels(FILES["gray"], added), after_pixels(FILES["gray"], added)):
        np.testing.assert_array_equal(decode(data).luma, expected)
    deep = decode(before_pixels(FILES["deep gray"], added)).luma
    np.testing.assert_array_equal(deep, expected.astype(np.uint16) * 257)


def test_an_animation_needs_its_frames() -> None:
    stream = io.BytesIO()
    frames = [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1].copy())]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedType, match="animated"):
        decode(stream.getvalue())
    lonely = before_pixels(FILES["gray"], chunk(b"acTL", struct.pack(">II", 2, 0)))
    np.testing.assert_array_equal(decode(lonely).luma, GRAY)

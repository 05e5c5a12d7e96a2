"""Tests of reading metadata from all formats."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from service.formats import containers
from service.formats.registry import Format
from service.metadata import iptc, reader, transfer, xmp
from service.metadata.reader import IMAGEMAGICK_COPIES
from service.metadata.transfer import Comment, Density, Metadata
from tests.conftest import encoded
from tests.samples.metadata import (
    FORMATS,
    FULL,
    IIM,
    IPTC,
    LIES,
    ORDERS,
    PACKET,
    answer,
    encoded_image,
    exif_block,
    image_of,
    noise,
    opened,
    resource,
    scanner_tiff,
    texts,
)


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

    plain = image_of(pixels, "png")
    both = containers.png_with_chunks(
        plain, [text("iptc", IIM), text("exif", b"Exif\0\0" + exif_block()), text("xmp", PACKET)]
    )
    found = transfer.read(both, "png")
    assert found.iptc == resource(0x0404, IIM)
    assert (found.exif, found.xmp, found.comments) == (exif_block(), PACKET, ())


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("size", [500, 150_000])
def test_a_profile_is_read_and_never_written(pixels: np.ndarray, format_: Format, size: int) -> None:
    profile = np.random.default_rng(1).bytes(size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format_, icc_profile=profile)
    found = transfer.read(buffer.getvalue(), format_)
    assert found.icc == profile
    for target in FORMATS:
        assert "icc_profile" not in opened(transfer.write(image_of(pixels, target), target, answer(found))).info
        assert "icc_profile" not in opened(transfer.write(image_of(pixels, target), target, found)).info


def test_other_segments_are_not_carried(pixels: np.ndarray) -> None:
    others = [(0xE2, b"MPF\0MM\0*"), (0xEB, b"JP\0\1jumb"), (0xE1, b"http://ns.adobe.com/xmp/extension/\0more")]
    others += [(0xED, b"Exif\0\0" + exif_block()), (0xEC, b"Ducky"), (0xE0, b"JFXX\0\x10thumbnail")]
    assert transfer.read(containers.jpeg_with_segments(image_of(pixels, "jpeg"), others), "jpeg") == Metadata()
    claim = containers.png_with_chunks(image_of(pixels, "png"), [(b"caBX", b"jumb")])
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
    data = containers.png_with_chunks(image_of(pixels, "png"), chunks)
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
        [(0xE1, b"Exif\0\0" + exif_block())] * 500,
        [(0xED, b"Photoshop 3.0\0" + resource(0x0404, b"") * 4000)] * 200,
        [(0xE2, b"ICC_PROFILE\0\1\2half")],
        [(0xE2, b"ICC_PROFILE\0" + bytes(2) + b"none")],
        [(0xE0, b"JFIF\0\1\1\7\0\1\0\1")],
    ],
    ids=range(7),
)
def test_hostile_segments(pixels: np.ndarray, parts: list[tuple[int, bytes]]) -> None:
    data = containers.jpeg_with_segments(image_of(pixels, "jpeg"), parts)
    started = time.thread_time()
    found = transfer.read(data, "jpeg")
    assert time.thread_time() - started < 2
    assert found.icc is None
    assert sum(len(comment.text) for comment in found.comments) <= reader.MAX_BLOCK


@pytest.mark.parametrize("part", [b"XMP \0\0\0\0", b"EXIF\xff\xff\xff\xff", b"EXIF\2\0\0\0ab", b"ICCP"])
def test_hostile_webp_chunks(pixels: np.ndarray, part: bytes) -> None:
    started = time.thread_time()
    assert transfer.read(image_of(pixels, "webp") + part * 1_000_000, "webp").xmp is None
    assert time.thread_time() - started < 2


def test_a_chunk_with_a_wrong_sum_is_left_out(pixels: np.ndarray) -> None:
    data = bytearray(transfer.write(image_of(pixels, "png"), "png", FULL))
    data[data.index(b"eXIf") + 30] ^= 1
    found = transfer.read(bytes(data), "png")
    assert found.exif is None
    assert found.xmp == PACKET


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
def test_resolutions_of_a_tiff(numbers: tuple[int, int], unit: int, expected: Density | None) -> None:
    side = (5, 1, struct.pack("<II", *numbers))
    changes = {0x11A: side, 0x11B: side, 0x128: (3, 1, struct.pack("<H", unit))}
    assert transfer.read(scanner_tiff(changes=changes), "tiff").density == expected


@ORDERS
def test_iptc_that_stands_alone(order: str) -> None:
    iim = IIM + bytes(-len(IIM) % 4)
    alone = {0x8649: (1, 0, b""), 0x83BB: (4, len(iim) // 4, iim)}
    assert transfer.read(scanner_tiff(order, changes=alone), "tiff").iptc == iptc.iim_resource(iim)
    other = iptc.iim_resource(b"x").replace(b"\4\4", b"\4\5", 1)
    beside = {0x8649: (1, len(other), other), 0x83BB: (7, len(IIM), IIM)}
    assert transfer.read(scanner_tiff(order, changes=beside), "tiff").iptc == other + iptc.iim_resource(IIM)
    both = {0x83BB: (7, 5, b"\x1cold!")}
    assert transfer.read(scanner_tiff(order, changes=both), "tiff").iptc == IPTC


def test_metadata_of_a_bmp_and_a_gif() -> None:
    data = bytearray(encoded_image(noise(), "bmp"))  # type: ignore[arg-type]
    struct.pack_into("<ii", data, 38, 11811, 11811)
    assert opened(bytes(data)).info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert transfer.read(bytes(data), "bmp") == Metadata(density=Density(11811, 11811, "metre"))
    buffer = io.BytesIO()
    Image.fromarray(noise()).quantize(16).save(buffer, "GIF", comment="Müritz, ".encode() * 100)
    assert transfer.read(buffer.getvalue(), "gif").comments == (Comment("Comment", "Müritz, " * 100),)


@pytest.mark.parametrize(
    ("keyword", "is_copy"),
    [
        ("exif:Orientation", True),
        ("exif:PixelXDimension", True),
        ("exif:DateTimeOriginal", False),
        ("icc:description", True),
        ("jpeg:sampling-factor", True),
        ("tiff:photometric", True),
        ("png:IHDR.bit_depth", True),
        ("Thumb::Image::Width", True),
        ("Title", False),
        ("date:create", False),
    ],
)
def test_copies_in_the_texts_of_a_png(keyword: str, is_copy: bool) -> None:
    assert bool(IMAGEMAGICK_COPIES.match(keyword)) == is_copy
    data = containers.png_with_chunks(
        encoded(np.zeros((4, 4), np.uint8), "PNG"), [(b"tEXt", keyword.encode() + b"\0text")]
    )
    assert transfer.read(data, "png").comments == (() if is_copy else (Comment(keyword, "text"),))


def test_a_chunk_beside_the_pixels_that_is_compressed_is_read() -> None:
    text = (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LIES))
    data = containers.png_with_chunks(encoded(np.zeros((4, 4), np.uint8), "PNG"), [text])
    assert transfer.read(data, "png").xmp == LIES


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (2, 2), (5, 9), (1, 1), (255, 255)])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_profile_in_oddly_numbered_segments_is_read_if_it_is_whole(numbers: tuple[int, int], count: int) -> None:
    icc = bytearray(b"a profile".ljust(36, b".") + b"acsp" + bytes(range(200)))
    icc[:4] = len(icc).to_bytes(4)
    # Segments are in the order of their numbers, if these differ.
    parts = [icc[:100], icc[100:]] if numbers[0] <= numbers[1] else [icc[100:], icc[:100]]
    bodies = [b"ICC_PROFILE\0" + bytes([n, count]) + part for n, part in zip(numbers, parts, strict=True)]
    data = encoded(np.zeros((8, 8), np.uint8), "JPEG")
    found = transfer.read(containers.jpeg_with_segments(data, [(0xE2, body) for body in bodies]), "jpeg")
    assert found.icc == bytes(icc)
    missing = transfer.read(containers.jpeg_with_segments(data, [(0xE2, bodies[0])]), "jpeg")
    assert missing.icc is None or numbers[0] == count == 1


def test_texts_that_belong_to_their_png_are_kept() -> None:
    plain = encoded(np.random.default_rng(0).integers(0, 256, (300, 400), np.uint8), "PNG")
    workflow = '{"node": "a scan of 1931"}' * 4000
    data = containers.png_with_chunks(plain, texts(b"zTXt", b"workflow\0\0", workflow.encode()))
    assert len(workflow) > 20 * (len(data) - len(plain))
    assert transfer.read(data, "png").comments[0].text == workflow

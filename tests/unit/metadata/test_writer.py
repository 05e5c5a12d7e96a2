"""Tests of writing metadata into encoded images."""

import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from service.formats import containers, decoding_limits
from service.formats.registry import Format
from service.imaging import decoding, identification
from service.metadata import exif, transfer, xmp
from service.metadata.transfer import Comment, Density, Metadata
from tests.conftest import encoded
from tests.samples.metadata import (
    CAPTION,
    FORMATS,
    FULL,
    IIM,
    MAKER_NOTE,
    ORDERS,
    PACKET,
    answer,
    encoded_image,
    exif_block,
    image_of,
    noise,
    opened,
    packet_of,
    page_of,
    resource,
    values,
)


def crcs_are_right(data: bytes) -> bool:
    position = 8
    while position < len(data):
        (size,) = struct.unpack_from(">I", data, position)
        body = data[position + 4 : position + 8 + size]
        if zlib.crc32(body) != struct.unpack_from(">I", data, position + 8 + size)[0]:
            return False
        position += 12 + size
    return position == len(data)


@pytest.mark.parametrize(
    ("format_", "with_alpha"), [("jpeg", False), ("png", False), ("png", True), ("webp", False), ("webp", True)]
)
def test_pixels_are_not_touched(pixels: np.ndarray, format_: Format, with_alpha: bool) -> None:
    plain = image_of(pixels, format_, with_alpha=with_alpha)
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
    plain = image_of(pixels, format_)
    assert transfer.read(plain, format_).exif is None
    assert transfer.write(plain, format_, Metadata()) == plain


def test_what_does_not_fit_into_a_jpeg(pixels: np.ndarray) -> None:
    plain = image_of(pixels, "jpeg")
    large = Metadata(
        exif=exif_block() + bytes(66_000), comments=(Comment("Comment", "x" * 70_000), Comment("Title", "a lake"))
    )
    found = transfer.read(transfer.write(plain, "jpeg", large), "jpeg")
    assert found.exif is not None
    tags = Image.Exif()
    tags.load(found.exif)
    assert (tags[0x10E], tags.get_ifd(ExifTags.IFD.Exif)[0x927C]) == (CAPTION, MAKER_NOTE)
    assert found.exif.index(MAKER_NOTE) == exif_block().index(MAKER_NOTE)
    assert found.comments == (Comment("Comment", "Title: a lake"),)
    padded = PACKET.replace(b"\n<?xpacket end", b" " * 70_000 + b"\n<?xpacket end")
    found = transfer.read(transfer.write(plain, "jpeg", answer(Metadata(xmp=padded))), "jpeg")
    assert found.xmp is not None
    assert values(found.xmp, "xmp:CreatorTool") == ["a > b"]
    full = PACKET.replace("Großmutter".encode(), b"x" * 70_000)
    found = transfer.read(transfer.write(plain, "jpeg", answer(Metadata(xmp=full))), "jpeg")
    assert found.xmp == xmp.new_packet("compact", "1")
    png = transfer.write(image_of(pixels, "png"), "png", answer(Metadata(xmp=full, exif=large.exif)))
    assert b"x" * 70_000 in packet_of(png)
    assert opened(png).getexif()[0x112] == 1


def test_resources_over_several_segments(pixels: np.ndarray) -> None:
    resources = resource(0x0404, IIM * 5000) + resource(1060, b"old") + resource(1036, b"thumbnail")
    data = transfer.write(image_of(pixels, "jpeg"), "jpeg", Metadata(iptc=resources))
    assert opened(data).size == (47, 33)
    assert transfer.read(data, "jpeg").iptc == resource(0x0404, IIM * 5000)


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
    image = opened(transfer.write(image_of(pixels, format_), format_, Metadata(density=density)))
    assert image.info.get("dpi") == (None if expected is None else pytest.approx(expected, abs=0.01))


def test_the_shape_of_pixels(pixels: np.ndarray) -> None:
    data = transfer.write(image_of(pixels, "jpeg"), "jpeg", Metadata(density=Density(2, 1, "shape")))
    assert opened(data).info["jfif_density"] == (2, 1)
    png = transfer.write(image_of(pixels, "png"), "png", transfer.read(data, "jpeg"))
    assert opened(png).info["aspect"] == (2, 1)


def test_comments_of_a_png(pixels: np.ndarray) -> None:
    comments = (
        Comment("Title", "Müritz"),
        Comment("Author", "Łucja"),
        Comment("Title", "See", "de", "Titel"),
    )
    data = transfer.write(image_of(pixels, "png"), "png", Metadata(comments=comments))
    image = opened(data)
    assert image.text["Author"] == "Łucja"  # type: ignore[attr-defined]
    assert image.text["Title"].lang == "de"  # type: ignore[attr-defined]
    assert transfer.read(data, "png").comments == comments


def test_a_comment_in_an_unknown_encoding(pixels: np.ndarray) -> None:
    raw = "Müritz".encode("latin-1")
    found = transfer.read(
        containers.jpeg_with_segments(image_of(pixels, "jpeg"), [(0xFE, raw), (0xFE, b"a\0b\0")]), "jpeg"
    )
    assert opened(transfer.write(image_of(pixels, "png"), "png", found)).info["Comment"] == "a b"
    assert transfer.read(transfer.write(image_of(pixels, "png"), "png", found), "png").comments[0].text == "Müritz"
    assert raw in transfer.write(image_of(pixels, "jpeg"), "jpeg", found)


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
def test_density_of_a_tiff(density: Density, expected: tuple[tuple[int, int], int], order: str) -> None:
    block = exif.with_software(None, "x") if order == "<" else None
    data = transfer.write(encoded_image(noise()), "tiff", Metadata(density=density, exif=block))
    page = page_of(data)
    assert (page.tags["XResolution"].value, int(page.tags["ResolutionUnit"].value)) == expected
    if density.x < 2**32 and density.unit != "metre":
        assert transfer.read(data, "tiff").density == density


def test_comments_of_a_tiff() -> None:
    one = Metadata(comments=(Comment("Comment", "Müritz"),))
    assert transfer.read(transfer.write(encoded_image(noise()), "tiff", one), "tiff").exif is not None
    page = page_of(transfer.write(encoded_image(noise()), "tiff", one))
    assert page.description == "Müritz"
    described = Metadata(comments=one.comments, exif=exif_block())
    assert page_of(transfer.write(encoded_image(noise()), "tiff", described)).description == CAPTION
    two = Metadata(comments=(*one.comments, Comment("Title", "See")))
    assert page_of(transfer.write(encoded_image(noise()), "tiff", two)).description == ""

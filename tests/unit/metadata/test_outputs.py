"""Tests of the metadata in outputs: untrue properties are gone, and a face is where its pixels are."""

import io
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, PngImagePlugin

from service.formats import containers, heif_reader
from service.formats.registry import Format
from service.inference.registry import ModelRegistry
from service.metadata import transfer
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import Settings
from tests.conftest import encoded
from tests.samples.metadata import LIES, PROFILE
from tests.samples.packets import every, packet
from tests.unit.metadata.test_xmp_regions import (
    AREAS,
    FACE,
    ORIENTATIONS,
    RECTANGLE,
    SIZE,
    area_of,
    microsoft,
    regions,
)


@pytest.fixture(scope="module")
def colorizer(models: Path) -> Colorizer:
    settings = Settings(models=models, device="cpu")
    return Colorizer(ModelRegistry(settings), settings)


@pytest.mark.parametrize("format_", ["jpeg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "TIFF"])
def test_no_answer_says_what_its_upload_was(
    colorizer: Colorizer, gray: np.ndarray, source: str, format_: Format
) -> None:
    block = Image.Exif()
    block[0x102], block[0x103], block[0x106], block[0x115] = 16, 1, 1, 1
    block[0x8773], block[0x10E] = PROFILE, "Grandma"
    photo, buffer = Image.fromarray(gray[:64, :80]), io.BytesIO()
    if source == "TIFF":
        photo.save(buffer, source, tiffinfo={0x2BC: LIES, 0x10E: "Grandma"})
    elif source == "JPEG":
        photo.save(buffer, source, exif=block, xmp=LIES)
    else:
        photo.save(buffer, source, exif=block)
        text = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LIES)
        buffer = io.BytesIO(containers.png_with_chunks(buffer.getvalue(), [text]))
    answer = colorizer.colorize(buffer.getvalue(), Options(format=format_)).data
    said = transfer.read(answer, format_)
    assert said.xmp is not None
    assert every(said.xmp, "xmp:Rating") == ["5"]
    for name in ("photoshop:ColorMode", "tiff:BitsPerSample", "GCamera:MotionPhoto", "dc:format"):
        assert not every(said.xmp, name)
    assert PROFILE not in answer
    tags = Image.open(io.BytesIO(answer)).getexif()
    assert tags[0x10E] == "Grandma"
    if format_ != "tiff":
        assert not {0x102, 0x103, 0x106, 0x115, 0x8773} & set(tags)


def test_a_kept_photo_is_the_same_to_the_byte_and_a_changed_one_tells_no_lies(
    colorizer: Colorizer, astronaut: np.ndarray
) -> None:
    data = encoded(astronaut, "JPEG", xmp=LIES)
    assert colorizer.colorize(data, Options(if_color="keep")).data == data
    smaller = colorizer.colorize(data, Options(if_color="keep", max_side=60)).data
    assert b"MotionPhoto" not in smaller
    assert b'xmp:Rating="5"' in smaller


def photo_with_a_face() -> Image.Image:
    photo = Image.new("L", SIZE, 40)
    photo.paste(230, FACE)
    return photo


def photo_upload(orientation: int, format_: str, told_by: str) -> bytes:
    """Return a photo with a bright face, and with its orientation in EXIF or XMP."""
    block = Image.Exif()
    block[0x112] = orientation
    attributes = f'tiff:Orientation="{orientation}"'
    said = packet(regions(AREAS["attributes"]), microsoft(RECTANGLE), attributes=attributes if told_by == "XMP" else "")
    buffer = io.BytesIO()
    options = {"exif": block} if told_by == "EXIF" else {}
    if format_ == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", said.decode())
        options["pnginfo"] = texts
    else:
        options["xmp"] = said
    photo_with_a_face().convert("RGB").save(buffer, format_, quality=95, **options)
    return buffer.getvalue()


def bright(data: bytes) -> tuple[int, int, int, int]:
    """Return the edges of the bright part of an image."""
    found = Image.open(io.BytesIO(data)).convert("L").point(lambda level: 255 * (level > 135)).getbbox()
    assert found is not None
    return found


def told(data: bytes) -> tuple[float, float, float, float]:
    """Return the edges of the face in the metadata of an output, in pixels."""
    width, height = Image.open(io.BytesIO(data)).size
    said = transfer.read(data, "jpeg").xmp
    assert said is not None
    x, y, w, h = area_of(said)
    corner = [float(value) for value in every(said, "MPReg:Rectangle")[0].split(",")]
    assert corner == pytest.approx([x - w / 2, y - h / 2, w, h], abs=1e-5)
    return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height


@ORIENTATIONS
@pytest.mark.parametrize(
    ("format_", "told_by"), [("JPEG", "EXIF"), ("JPEG", "XMP"), ("PNG", "EXIF"), ("PNG", "XMP"), ("WEBP", "EXIF")]
)
def test_a_face_of_an_answer_is_where_its_pixels_are(
    colorizer: Colorizer, orientation: int, format_: str, told_by: str
) -> None:
    for side in (None, 80):
        answer = colorizer.colorize(
            photo_upload(orientation, format_, told_by), Options(format="jpeg", max_side=side)
        ).data
        assert told(answer) == pytest.approx(bright(answer), abs=1.5)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("source", ["heic", "avif"])
def test_a_face_of_a_heif(colorizer: Colorizer, orientation: int, source: str) -> None:
    said = packet(regions(AREAS["attributes"]), microsoft(RECTANGLE))
    photo, buffer = photo_with_a_face().convert("RGB"), io.BytesIO()
    block = Image.Exif()
    block[0x112] = orientation
    if source == "heic":
        pillow_heif.from_pillow(photo).save(buffer, xmp=said, exif=block.tobytes(), quality=95)
    else:
        photo.save(buffer, "AVIF", xmp=said, exif=block, quality=95)
    assert heif_reader.read(buffer.getvalue()).orientation == orientation
    answer = colorizer.colorize(buffer.getvalue(), Options(format="jpeg")).data
    assert told(answer) == pytest.approx(bright(answer), abs=1.5)


def test_a_heif_that_crops_its_picture() -> None:
    buffer = io.BytesIO()
    block = Image.Exif()
    block[0x112] = 6
    pillow_heif.from_pillow(photo_with_a_face()).save(buffer, exif=block.tobytes())
    assert heif_reader.read(buffer.getvalue().replace(b"irot", b"clap")).orientation == 0

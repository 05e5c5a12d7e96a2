"""JPEGs in the strips and tiles of a TIFF."""

import io

import numpy as np
import pytest
from PIL import Image

from service.errors import UnreadableImage
from service.formats import tiff_tags
from service.imaging import color
from service.imaging.decoders import tiff as tiff_decoder
from tests.samples import tiffs
from tests.unit.imaging.decoders.test_tiff import LAYOUTS, LIMITS, SIDES, photo


@pytest.mark.parametrize("layout", ["one strip", "strips", "tiles"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_in_strips_and_tiles(astronaut: np.ndarray, layout: str, mode: str) -> None:
    image = Image.fromarray(astronaut[:37, :53].copy()).convert(mode)
    samples = np.asarray(image).reshape(*SIDES, -1)
    options = LAYOUTS[layout]
    rows, tile = int(options.get("rows", 0)) and 8, options.get("tile")
    # Pillow inverts the inks of a JPEG.
    stored = 255 - samples if mode == "CMYK" else samples
    parts = tiffs.chunks(stored, 8, "<", 1, rows or 37, tile)  # type: ignore[arg-type]
    heights = [len(part) // (samples.shape[2] * (tile[0] if tile else 53)) for part in parts]  # type: ignore[index]
    contents = []
    for part, height in zip(parts, heights, strict=True):
        stream = io.BytesIO()
        size = (len(part) // samples.shape[2] // height, height)
        Image.frombytes(mode, size, part).save(stream, "JPEG", quality=95, subsampling=1 if mode == "RGB" else 0)
        contents.append(stream.getvalue())
    tags: tiffs.Tags = {
        tiff_tags.IMAGE_WIDTH: (4, [53]),
        tiff_tags.IMAGE_LENGTH: (4, [37]),
        tiff_tags.BITS_PER_SAMPLE: (3, [8] * samples.shape[2]),
        tiff_tags.COMPRESSION: (3, [7]),
        tiff_tags.PHOTOMETRIC_INTERPRETATION: (3, [{"L": 1, "RGB": 6, "CMYK": 5}[mode]]),
        tiff_tags.SAMPLES_PER_PIXEL: (3, [samples.shape[2]]),
    }
    tags |= (
        {tiff_tags.TILE_WIDTH: (4, [16]), tiff_tags.TILE_LENGTH: (4, [32])}
        if tile
        else {tiff_tags.ROWS_PER_STRIP: (4, [rows or 37])}
    )
    found = photo(tiffs.assembled(contents, tags, {}, is_tiled=bool(tile)))
    expected = color.luma_of_rgb(np.asarray(image.convert("RGB")))
    assert np.abs(found.luma.astype(int) - expected).mean() < 4
    assert found.alpha is None


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr", "CMYK"])
@pytest.mark.parametrize("tiles", [None, (64, 64)])
def test_a_jpeg_in_a_tiff_that_is_cut_short_is_damage(mode: str, tiles: tuple[int, int] | None) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (128, 128, len(mode) if mode != "YCbCr" else 3), np.uint8)
    picture = Image.fromarray(noise.squeeze(), mode)
    sides = [(0, 0, 128, 128)] if tiles is None else [(x, y, x + 64, y + 64) for y in (0, 64) for x in (0, 64)]
    jpegs = []
    for side in sides:
        stream = io.BytesIO()
        picture.crop(side).save(stream, "JPEG", quality=90)
        jpegs.append(stream.getvalue())
    channels = noise.shape[2]
    tags: tiffs.Tags = {
        tiff_tags.IMAGE_WIDTH: (4, [128]),
        tiff_tags.IMAGE_LENGTH: (4, [128]),
        tiff_tags.BITS_PER_SAMPLE: (3, [8] * channels),
        tiff_tags.COMPRESSION: (3, [7]),
        tiff_tags.PHOTOMETRIC_INTERPRETATION: (3, [{"L": 1, "RGB": 6, "YCbCr": 6, "CMYK": 5}[mode]]),
        tiff_tags.SAMPLES_PER_PIXEL: (3, [channels]),
    }
    tags |= (
        {tiff_tags.TILE_WIDTH: (4, [64]), tiff_tags.TILE_LENGTH: (4, [64])}
        if tiles
        else {tiff_tags.ROWS_PER_STRIP: (4, [128])}
    )
    whole = tiff_decoder.read(tiffs.assembled(jpegs, tags, {}, is_tiled=bool(tiles)), LIMITS)
    assert tiff_decoder.decode(whole).picture.shape[:2] == (128, 128)
    for share in (0.3, 0.6, 0.95):
        for end in (b"", b"\xff\xd9"):
            cut = [*jpegs[:-1], jpegs[-1][: int(share * len(jpegs[-1]))].removesuffix(b"\xff") + end]
            with pytest.raises(UnreadableImage):
                tiff_decoder.decode(tiff_decoder.read(tiffs.assembled(cut, tags, {}, is_tiled=bool(tiles)), LIMITS))
